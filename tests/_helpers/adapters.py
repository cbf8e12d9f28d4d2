"""Adapters written by PEFT itself, and what PEFT makes of them: the oracle of all that is read from such folders."""

import copy
import json
import warnings

import torch
from torch import nn


class Small(nn.Module):
    """Has each kind of layer that LoRA adapts."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.conv = nn.Conv2d(3, 8, 3)
        self.pointwise = nn.Conv2d(8, 6, 1)
        self.fc1 = nn.Linear(6, 7)
        self.fc2 = nn.Linear(7, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.fc2(self.fc1(self.pointwise(self.conv(x)).mean((2, 3))))) + self.embedding.weight.sum()


def adapted(model, config, *, seed=0, change=None):
    """Return a PEFT model of a copy of a module, all of whose trained parameters have random values."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        tuned = peft.get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        if change is not None:
            change(tuned)
    return tuned


def save(tuned, folder, **options):
    """Save an adapter, and return the weights that PEFT merges into its base."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.save_pretrained(folder, **options)
        return {name: tensor.clone() for name, tensor in tuned.merge_and_unload().state_dict().items()}


def write_lora(model, folder, *, seed=0, change=None, saving=None, **options):
    """Save a LoRA adapter of a module with random factors, and return the weights that PEFT merges into its base."""
    import peft

    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "init_lora_weights": False} | options)
    return save(adapted(model, config, seed=seed, change=change), folder, **saving or {})


def change_config(folder, **changes):
    """Overwrite options of an adapter that is saved."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def require_equal(vectors, base, expected, task="a"):
    """Require of task vectors that they are what PEFT adds to a base, and that weights are what it merges."""
    for name, tensor in base.items():
        if tensor.is_floating_point() and name in vectors.names:
            difference = vectors.stack(name)[0]
            for made, wanted in ((difference, expected[name] - tensor), (vectors.expert(task, name), expected[name])):
                away = float((made.double() - wanted.double()).abs().max())
                assert away < 1e-5, f"{name} is {away} away"

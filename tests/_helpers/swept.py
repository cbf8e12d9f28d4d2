"""A small merge module with batch normalisation and a head for each set, loaders for it, and what validates it."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import EvaluationSuite, MergeModule, TaskVectors

CLASSES = {"a": 3, "b": 5, "far": 3}


def small_model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()
        ).eval()


def small_module(recipe=None, **options):
    """The same whenever it is made."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        heads = {name: nn.Linear(8, classes) for name, classes in CLASSES.items()}
        states = [{name: value.clone() for name, value in small_model().state_dict().items()} for _ in "bab"]
        for state in states[1:]:
            for value in state.values():
                if value.is_floating_point():
                    value.add_(torch.randn_like(value).abs_(), alpha=0.4)
    vectors = TaskVectors.open(states[0], dict(zip("ab", states[1:], strict=True)))
    return MergeModule(small_model(), vectors, recipe, heads=heads, **options)


def small_loader(name, size, seed=0, batch_size=8):
    generator = torch.Generator().manual_seed(hash((size, seed)) % 2**31)
    inputs = 2 * torch.randn(size, 4, generator=generator) + 1
    labels = torch.randint(CLASSES[name.rpartition("/")[2]], (size,), generator=generator)
    return DataLoader(TensorDataset(inputs, labels), batch_size=batch_size)


def small_loaders(seed=0):
    return {name: small_loader(name, size, seed) for name, size in (("id/a", 21), ("id/b", 13), ("ood/far", 17))}


def small_samples(seed=1):
    return {name: small_loader(name, size, seed) for name, size in (("id/a", 19), ("id/b", 24))}


def validated(trainer, module, loaders):
    """The figures of a validation."""
    return {name: value for entry in trainer.validate(module, loaders, verbose=False) for name, value in entry.items()}


def plain_module() -> MergeModule:
    """The module as a configuration file names it."""
    return small_module()


def small_suite(validation: bool = False) -> EvaluationSuite:
    """The loaders as a configuration file names them."""
    suite = EvaluationSuite.of(small_loaders())
    if validation:
        suite.validation = small_samples()
    return suite

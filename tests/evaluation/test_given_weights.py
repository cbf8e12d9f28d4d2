"""A module that holds other weights for a while."""

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassF1Score

from lwptv_lightning import MergeModule, TaskVectors
from lwptv_lightning.evaluation import holding, weights_of


class Net(nn.Module):
    """A linear layer behind batch norm."""

    def __init__(self, classes=3):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, classes)

    def forward(self, inputs):
        return self.head(self.norm(inputs))


def state_of(seed, classes=3):
    """A base's weights, or those of what was fine-tuned from it."""
    torch.manual_seed(0)
    net = Net(classes)
    nn.init.normal_(net.head.weight)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.3 * bool(seed) * torch.rand(value.shape, generator=generator)
        if value.is_floating_point()
        else value
        for name, value in net.state_dict().items()
    }


@pytest.fixture
def loaders():
    generator = torch.Generator().manual_seed(0)
    samples = [(torch.randn(4, generator=generator), index % 3) for index in range(40)]
    return {name: torch.utils.data.DataLoader(samples, batch_size=8) for name in ("id/a", "id/b", "ood/far/c")}


@pytest.mark.parametrize("task", [None, "a", "b"])
@pytest.mark.parametrize("metric", [None, MulticlassF1Score(3, average="macro")])
def test_base_and_experts_are_what_they_are_alone(task, metric, loaders, make_trainer):
    states = {None: state_of(0), "a": state_of(1), "b": state_of(2)}
    vectors = TaskVectors.open(states[None], {"a": states["a"], "b": states["b"]}, exclude=("norm.weight",))
    module = MergeModule(Net(), vectors, {"rule": "ties", "ratio": 0.5}, metric=metric, max_memory=1 << 30)
    trainer = make_trainer()
    before = trainer.validate(module, loaders, verbose=False)
    merged = {name: value.clone() for name, value in module.model.state_dict().items()}
    told = module.installed, module.plan, module.measured, module.provenance
    with holding(module, weights_of(module, task)):
        found = trainer.validate(module, loaders, verbose=False)
        held = module.model.state_dict()
        assert all(torch.equal(held[name], value) for name, value in states[task].items())
    assert all(torch.equal(value, merged[name]) for name, value in module.model.state_dict().items())
    assert told == (module.installed, module.plan, module.measured, module.provenance)
    assert trainer.validate(module, loaders, verbose=False) == before
    model = Net().eval()
    model.load_state_dict(states[task])
    own = (metric or MulticlassF1Score(3, average="micro")).clone()
    for inputs, labels in loaders["id/a"]:
        own.update(model(inputs), labels)
    assert found[0]["id/a"] == pytest.approx(own.compute().item(), abs=1e-6)


def test_a_failure_inside_leaves_the_module_as_it_was():
    module = MergeModule(Net(), TaskVectors.open(state_of(0), {"a": state_of(1)})).merge_()
    merged = {name: value.clone() for name, value in module.model.state_dict().items()}

    def fail():
        with holding(module, weights_of(module, "a")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert all(torch.equal(value, merged[name]) for name, value in module.model.state_dict().items())
    assert module.vectors.tasks == ("a",)


def test_classifiers_of_their_own_sizes_stay_heads(loaders, make_trainer):
    experts = {"a": state_of(1, 3), "b": state_of(2, 5)}
    vectors = TaskVectors.open(state_of(0, 2), experts, exclude=("head.*",))
    heads = {}
    for task, state in experts.items():
        heads[task] = nn.Linear(4, len(state["head.bias"]))
        heads[task].load_state_dict({name: state[f"head.{name}"] for name in ("weight", "bias")})
    net = Net(2)
    net.head = nn.Identity()
    module = MergeModule(net, vectors, heads=heads | {"c": "a"})
    with holding(module, weights_of(module, "b")):
        found = make_trainer().validate(module, loaders, verbose=False)
    expert = Net(5).eval()
    expert.load_state_dict(experts["b"])
    right = sum(int((expert(inputs).argmax(1) == labels).sum()) for inputs, labels in loaders["id/b"])
    assert found[1]["id/b"] == pytest.approx(right / 40)

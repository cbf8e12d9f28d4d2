"""Small batches run as one, and get what they get alone."""

import pytest
import torch
from _helpers.swept import CLASSES, small_loaders, small_model, small_module
from torch import nn

from lwptv_lightning import MergeModule, TaskVectors
from lwptv_lightning.search.judge import Batch, Judge


def batches_of(loaders):
    return [Batch(name, number, *batch) for name, loader in loaders.items() for number, batch in enumerate(loader)]


def judged(judge, batches):
    found = {}
    for batch in batches:
        found |= {(each.loader, each.number): right for each, right in judge.add(batch)}
    return found | {(each.loader, each.number): right for each, right in judge.rest()}


def weights_of(module):
    recipes = ("task_arithmetic", "ties", "simple_average")
    states = [small_module(recipe).merge_().model.state_dict() for recipe in recipes]
    return [{f"model.{name}": tensor.clone() for name, tensor in state.items()} for state in states]


@pytest.fixture
def sizes(monkeypatch):
    """How many samples went through the first layer in each call."""
    found = []
    forward = nn.Linear.forward

    def counted(self, inputs):
        found.extend([len(inputs)] if inputs.shape[1] == 4 else [])
        return forward(self, inputs)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    return found


def assert_as_alone(module, batches, weights):
    found = judged(Judge(module, weights), batches)
    alone = judged(Judge(module, weights, joins=False), batches)
    assert found.keys() == alone.keys() == {(batch.loader, batch.number) for batch in batches}
    assert all(torch.equal(found[key], alone[key]) for key in alone)


@torch.no_grad()
def test_small_batches_of_all_loaders_run_as_one(sizes):
    module = small_module().eval()
    batches, weights = batches_of(small_loaders()), weights_of(module)
    assert_as_alone(module, batches, weights)
    sizes.clear()
    judge = Judge(module, weights)
    judged(judge, batches)
    assert sizes[len(batches) :] == [51, 51, 51, 51]  # after the first candidate alone: it as one, and then all three
    sizes.clear()
    judged(judge, batches)
    assert sizes == [51, 51, 51]


@torch.no_grad()
def test_a_model_that_looks_at_the_whole_batch_runs_it_alone(sizes):
    module = small_module().eval()
    module.model[1] = nn.BatchNorm1d(8, affine=True, track_running_stats=False)
    batches = [batch for batch in batches_of(small_loaders()) if len(batch.inputs) > 1]
    own = module.state_dict()
    weights = [{name: value for name, value in each.items() if name in own} for each in weights_of(small_module())]
    assert_as_alone(module, batches, weights)


@torch.no_grad()
def test_where_rounding_could_decide_a_batch_runs_alone_too(sizes):
    module = small_module().eval()
    with torch.no_grad():  # each class twice, alike
        for name in CLASSES:
            module.heads[name].weight[1] = module.heads[name].weight[0]
            module.heads[name].bias[1] = module.heads[name].bias[0]
            module.heads[name].bias[:2] += 50
    batches, weights = batches_of(small_loaders()), weights_of(module)
    judge = Judge(module, weights)
    judged(judge, batches)
    sizes.clear()
    judged(judge, batches)
    assert sorted(sizes)[-3:] == [51, 51, 51]
    assert len(sizes) == 3 + 3 * len(batches)


class Fixed(nn.Module):
    """Takes batches of a size alone."""

    def __init__(self):
        super().__init__()
        self.net = small_model()

    def forward(self, inputs):
        return self.net(inputs.reshape(-1, 4)[:8])


@torch.no_grad()
def test_a_model_that_takes_no_other_size_runs_each_alone():
    model = Fixed().eval()
    tasks = {task: {name: 2 * value for name, value in model.state_dict().items()} for task in "ab"}
    module = MergeModule(model, TaskVectors.open(model, tasks), heads=dict(small_module().heads))
    batches = [batch for batch in batches_of(small_loaders()) if len(batch.inputs) == 8]
    assert_as_alone(module, batches, [{f"model.{name}": value for name, value in model.state_dict().items()}])


@torch.no_grad()
def test_texts_large_batches_and_inputs_of_other_shapes_do_not_wait():
    module = small_module().eval()
    judge = Judge(module, weights_of(module))
    large = Batch("id/a", 0, torch.randn(200, 4), torch.zeros(200).long())
    assert [each.number for each, _ in judge.add(large)] == [0]
    small = Batch("id/a", 1, torch.randn(2, 4), torch.zeros(2).long())
    assert not list(judge.add(small))
    double = Batch("id/a", 2, torch.randn(2, 4).double(), torch.zeros(2).long())
    assert [each.number for each, _ in judge.add(double)] == [1]


@torch.no_grad()
def test_a_head_that_does_not_fit_is_told_as_elsewhere():
    module = small_module().eval()
    module.heads._modules["far"] = nn.Linear(9, 3)
    with pytest.raises(ValueError, match="far.*9"):
        judged(Judge(module, weights_of(module)), batches_of(small_loaders()))

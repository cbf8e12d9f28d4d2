"""AdaMerging against the authors' run, and its training in ``trainer.fit``."""

import pytest
import torch
from _helpers.golden import golden_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import AdaMergingModule, MergeModule, TaskVectors, merge

TASKS = ("task0", "task1", "task2")
NAMES = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.fc2 = nn.Linear(16, 5)

    def forward(self, inputs):
        return self.fc2(torch.relu(self.fc1(inputs)))


@pytest.fixture(scope="module")
def given():
    return golden_file("inputs_adamerging")


@pytest.fixture
def merge_module(given):
    def weights(model):
        return {name: given[f"{model}::{name}"] for name in NAMES}

    return MergeModule(Net(), TaskVectors.open(weights("base"), {task: weights(task) for task in TASKS}))


@pytest.mark.parametrize(
    ("per", "lr", "file"),
    [("tensor", 1e-3, "adamerging.official_layer_lr0.001"), ("task", 0.2, "adamerging.official_task_lr0.2")],
)
def test_every_step_matches_the_reference(given, merge_module, per, lr, file):
    expected = golden_file(file)
    module = AdaMergingModule(merge_module, per=per, lr=lr)
    module.load()
    optimizer = module.configure_optimizers()
    for step in range(6):
        batches = [{f"id/{task}": given["X"][step, row, half] for row, task in enumerate(TASKS)} for half in range(2)]
        loss = sum(module.entropy(batch) for batch in batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        coefficients = module.coefficients.detach().clamp(0, 1)
        if per == "tensor":
            coefficients = coefficients[[merge_module.vectors.names.index(name) for name in NAMES]]
        torch.testing.assert_close(coefficients, expected["lambdas"][step][:, 1:], atol=1e-5, rtol=0)
        torch.testing.assert_close(loss.detach(), expected["losses"][step], atol=1e-5, rtol=0)
    merged = merge(merge_module.vectors, module.recipe())
    for name in NAMES:
        torch.testing.assert_close(merged[name], expected[f"merged::{name}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("plus_plus", [False, True])
def test_fit_lowers_the_entropy_and_the_recipe_gives_the_trained_model(given, merge_module, make_trainer, plus_plus):
    inputs = given["X"].flatten(0, 3)
    loaders = {f"id/{task}": DataLoader(TensorDataset(inputs, torch.zeros(len(inputs))), 48) for task in TASKS}
    module = AdaMergingModule(merge_module, lr=0.02, plus_plus=plus_plus)
    module.load()
    batch = dict.fromkeys(loaders, inputs)
    before = float(module.entropy(batch).detach())
    make_trainer(max_steps=8, callbacks=[]).fit(module, loaders)
    assert float(module.entropy(batch).detach()) < before
    merged = merge(merge_module.vectors, module.recipe())
    for name, tensor in module.merged().items():
        torch.testing.assert_close(merged[name], tensor.detach())


def test_only_the_coefficients_are_trained_and_stored(merge_module):
    module = AdaMergingModule(merge_module, per="task")
    assert [name for name, _ in module.named_parameters()] == ["coefficients"]
    assert list(module.state_dict()) == ["coefficients"]


def test_wrong_use_is_named(merge_module, make_trainer, given):
    with pytest.raises(ValueError, match="unknown per 'layer'"):
        AdaMergingModule(merge_module, per="layer")
    loader = DataLoader(TensorDataset(given["X"].flatten(0, 3)))
    with pytest.raises(TypeError, match="dict of loaders"):
        make_trainer(max_steps=1).fit(AdaMergingModule(merge_module), loader)


def test_what_is_excluded_is_the_bases(given):
    states = [{name: given[f"{model}::{name}"] for name in NAMES} for model in ("base", *TASKS)]
    vectors = TaskVectors.open(states[0], dict(zip(TASKS, states[1:], strict=True)), exclude=("fc2.*",))
    module = AdaMergingModule(MergeModule(Net(), vectors))
    module.load()
    merged = module.merged()
    assert merged.keys() == set(NAMES)
    assert torch.equal(merged["fc2.weight"], states[0]["fc2.weight"])

"""Candidates of a sweep of several passes are compared on the same samples, or the loader is refused by name."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lwptv_lightning import MergeModule, TaskVectors
from lwptv_lightning.search import sweep

SIZE = 60
pytestmark = pytest.mark.filterwarnings("ignore:Your .* sampler has shuffling enabled")


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(SIZE, 6, generator=generator), torch.randint(4, (SIZE,), generator=generator))


@pytest.fixture
def module():
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    tuned = [{name: tensor + torch.randn_like(tensor) for name, tensor in model.state_dict().items()} for _ in range(2)]
    return MergeModule(model, TaskVectors.open(model, dict(zip("ab", tuned, strict=True))))


class Augmented(Dataset):
    """Adds noise, drawn by torch, NumPy and Python as a set's transforms do, or by a generator of its own."""

    def __init__(self, data, own=None):
        self.data, self.own = data, own

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        inputs, target = self.data[index]
        noise = torch.randn(6, generator=self.own)
        return inputs + noise + np.random.randn() + random.random(), target


class Stream(IterableDataset):
    """Yields the samples in an order, and perhaps in another one or others in each pass."""

    def __init__(self, data, kind):
        self.data, self.kind, self.passes = data, kind, 0

    def __iter__(self):
        self.passes += 1
        places = list(range(len(self.data)))
        if self.kind == "shuffled by torch":
            places = torch.randperm(len(places)).tolist()
        if self.kind == "another order":
            places = np.random.default_rng(self.passes).permutation(len(places)).tolist()
        if self.kind == "fewer":
            places = places[: len(places) - self.passes]
        return iter([self.data[place] for place in places])


def run(trainer, module, loader, at_once=1):
    recipes = {name: {"rule": "task_arithmetic", "scale": 0.5} for name in ("one", "two", "three")}
    recipes["none"] = {"rule": "task_arithmetic", "scale": 0.0}
    return sweep(trainer, module, recipes, {"id/x": loader}, at_once=at_once)


SAME = {
    "shuffled": lambda data: DataLoader(data, 7, shuffle=True),
    "shuffled by a generator": lambda data: DataLoader(
        data, 7, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "a subset": lambda data: DataLoader(data, 7, sampler=SubsetRandomSampler(range(SIZE))),
    "with replacement": lambda data: DataLoader(data, 7, sampler=WeightedRandomSampler([1.0] * SIZE, SIZE)),
    "augmented": lambda data: DataLoader(Augmented(data), 7, shuffle=True),
    "augmented by workers": lambda data: DataLoader(
        Augmented(data), 7, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "augmented by workers of a generator": lambda data: DataLoader(
        Augmented(data), 7, shuffle=True, num_workers=1, generator=torch.Generator().manual_seed(1)
    ),
    "a stream": lambda data: DataLoader(Stream(data, "in order"), 7),
    "a stream that shuffles": lambda data: DataLoader(Stream(data, "shuffled by torch"), 7),
    "ready batches": lambda data: list(DataLoader(data, 7)),
}


@pytest.mark.parametrize("kind", SAME)
def test_identical_candidates_differ_by_nothing(kind, module, data, make_trainer):
    result = run(make_trainer(), module, SAME[kind](data))
    for name in ("two", "three"):
        assert torch.equal(result.correct("one")["id/x"], result.correct(name)["id/x"])
        assert str(result.difference("one", name, "id")) == "+0.0 [+0.0, +0.0]"
    assert not torch.equal(result.correct("one")["id/x"], result.correct("none")["id/x"])


@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_outcomes_of_a_shuffled_loader_are_those_of_the_data_set(at_once, module, data, make_trainer):
    shuffled = run(make_trainer(), module, DataLoader(data, 7, shuffle=True), at_once)
    plain = run(make_trainer(), module, DataLoader(data, 7))
    assert torch.equal(shuffled.outcomes["id/x"], plain.outcomes["id/x"])


OTHER = {
    "augmented by a generator of its own": (
        lambda data: DataLoader(Augmented(data, torch.Generator().manual_seed(1)), 7),
        "60 of 60 samples changed",
    ),
    "a stream in another order": (lambda data: DataLoader(Stream(data, "another order"), 7), "samples changed"),
    "a stream with fewer": (lambda data: DataLoader(Stream(data, "fewer"), 7), "58 samples after 59"),
    "batches that are gone": (lambda data: iter(list(DataLoader(data, 7))), "gave no batch"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_samples_that_change_are_refused_by_name(kind, module, data, make_trainer):
    make, message = OTHER[kind]
    with pytest.raises(ValueError, match=rf"'id/x' g.*{message}|'id/x' {message}"):
        run(make_trainer(), module, make(data))
    assert (
        run(make_trainer(), module, make(data), at_once=4).outcomes["id/x"].shape[0] == 4
    )  # one pass compares in pairs


def test_labels_that_change_are_seen(module, data, make_trainer):
    class Relabelled(Stream):
        def __iter__(self):
            self.passes += 1
            return iter(
                [(inputs, (target + self.passes * (place == 5)) % 4) for place, (inputs, target) in enumerate(data)]
            )

    with pytest.raises(ValueError, match="'id/x' gives other samples in a second pass .1 of 60 samples changed"):
        run(make_trainer(), module, DataLoader(Relabelled(data, ""), 7))


def test_a_sweep_draws_no_random_numbers_of_the_run(module, data, make_trainer):
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    run(make_trainer(), module, DataLoader(Augmented(data), 7, shuffle=True, generator=generator))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(1).get_state())


def test_labels_of_another_shape_are_refused_by_name(module, data, make_trainer):
    one_hot = TensorDataset(data.tensors[0], nn.functional.one_hot(data.tensors[1]))
    with pytest.raises(ValueError, match=r"'id/x' has targets of shape \(7, 4\), expected one label"):
        run(make_trainer(), module, DataLoader(one_hot, 7))

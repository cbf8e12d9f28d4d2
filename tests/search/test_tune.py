"""A search on a small model: what is chosen, what is read when, and what is written."""

import json
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, tune
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import best, one_standard_error, sweep
from lwptv_lightning.search.space import REFERENCE

SPACE = {
    "rules": ["task_arithmetic", "ties"],
    "scores": ["mean_abs"],
    "ratios": [0.5],
    "scales": [0.3, 1],
    "gates": False,
}


@pytest.fixture
def module(vit, vit_vectors):
    torch.manual_seed(0)
    return MergeModule(vit, vit_vectors, heads={name: nn.Linear(48, 4) for name in ("a", "b", "far")})


def loader(size, seed):
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(size, 3, 32, 32, generator=generator), torch.randint(4, (size,), generator=generator)
    return DataLoader(TensorDataset(*data), batch_size=16)


@pytest.fixture
def validation():
    return {"id/a": loader(24, 0), "id/b": loader(16, 1)}


class Guarded(Dataset):
    """Samples that nobody may read, count or ask for before a file is there."""

    def __init__(self, data, path):
        self.data, self.path = data, path

    def look(self):
        assert self.path.is_file(), "a test sample was looked at before the choice was written"
        return self.data

    def __len__(self):
        return len(self.look())

    def __getitem__(self, index):
        return self.look()[index]


class GuardedLoader:
    """A loader of which nobody may ask anything before a file is there."""

    def __init__(self, inner, path):
        self.__dict__.update(_inner=inner, _path=path)

    def __getattr__(self, name):
        assert self._path.is_file(), f"{name} of a test loader was asked for before the choice was written"
        return getattr(self._inner, name)

    def __iter__(self):
        return iter(self._guarded())

    def __len__(self):
        return len(self._guarded())

    def _guarded(self):
        assert self._path.is_file(), "a test loader was looked at before the choice was written"
        return self._inner


@pytest.fixture
def tests(tmp_path):
    """Test loaders that raise until the choice is on the disk."""
    path = tmp_path / "store" / "choice.json"
    data = loader(20, 2).dataset
    # A DataLoader asks its data set for its length when it is made.
    guarded = Guarded(data, path)
    sampler = torch.utils.data.SequentialSampler(guarded)
    return {
        "id/a": DataLoader(guarded, batch_size=8, sampler=sampler),
        "ood/near/b": DataLoader(Guarded(loader(12, 3).dataset, path), batch_size=8),
        "ood/far": GuardedLoader(loader(15, 4), path),
    }


def test_no_test_sample_is_looked_at_before_the_choice_is_written(module, validation, tests, make_trainer, tmp_path):
    found = tune(make_trainer(), module, validation, tests, space=SPACE, masks=2, store=tmp_path / "store")
    told = json.loads((tmp_path / "store" / "choice.json").read_text())
    assert told["chosen"] == found.chosen
    assert MergeRecipe.from_dict(told["recipe"]) == found.recipe
    # The whole grid: the reference, two rules at two scales, and those pruned.
    assert len(found.candidates) == 8
    own = [name for name in found.validation.names if name in found.candidates]
    assert found.chosen["best"] == best(found.validation, names=own)
    assert found.chosen["one_standard_error"] == one_standard_error(found.validation, names=own)
    assert found.name == found.chosen["one_standard_error"]
    assert {loader: outcomes.shape[1] for loader, outcomes in found.test.outcomes.items()} == {
        "id/a": 20,
        "ood/near/b": 12,
        "ood/far": 15,
    }
    assert "the whole grid" in found.searched


def test_figures_are_those_of_a_sweep(module, validation, make_trainer):
    test = {"id/a": loader(20, 2), "ood/far": loader(15, 4)}
    found = tune(make_trainer(), module, validation, test, space=SPACE, masks=2)
    again = sweep(make_trainer(), module, {"own": found.recipe, "reference": MergeRecipe()}, test)
    for name, other in ((found.name, "own"), (REFERENCE, "reference")):
        assert found.test.figures(name) == again.figures(other)
    vectors = module.vectors
    weights = {name: vectors.expert("a", name) for name in vectors.names}
    expert = sweep(make_trainer(), module, {"expert": weights}, test)
    assert found.test.figures(found.experts["a"]) == expert.figures("expert")


def test_a_search_that_was_ended_goes_on(module, validation, make_trainer, tmp_path, monkeypatch):
    test = {"id/a": loader(20, 2), "ood/far": loader(15, 4)}
    given = {"space": SPACE, "masks": 2, "budget": 6}
    whole = tune(make_trainer(), module, validation, test, **given, store=tmp_path / "whole")
    passes = []

    def counted(*arguments, **options):
        if len(passes) == 2:
            raise KeyboardInterrupt
        passes.append(arguments)
        return sweep(*arguments, **options)

    monkeypatch.setattr(sys.modules["lwptv_lightning.search.tune"], "sweep", counted)
    with pytest.raises(KeyboardInterrupt):
        tune(make_trainer(), module, validation, test, **given, store=tmp_path / "ended")
    monkeypatch.undo()
    again = tune(make_trainer(), module, validation, test, **given, store=tmp_path / "ended")
    assert (again.chosen, again.recipe, again.searched) == (whole.chosen, whole.recipe, whole.searched)
    for one, other in ((again.validation, whole.validation), (again.test, whole.test)):
        assert one.names == other.names
        assert all(torch.equal(one.outcomes[name], other.outcomes[name]) for name in other.outcomes)


def test_gates_are_learnt_on_samples_of_their_own_and_can_be_chosen(module, validation, make_trainer):
    test = {"id/a": loader(20, 2)}
    samples = {"id/a": loader(16, 5), "id/b": loader(16, 6)}
    space = SPACE | {"rules": ["task_arithmetic"], "gates": ["task_arithmetic"], "ratios": [0], "scales": [0.3]}
    found = tune(make_trainer(), module, validation, test, space=space, samples=samples, masks=0, choice="best")
    learnt = [name for name in found.candidates if name.endswith("coefficients")]
    assert len(learnt) == 5
    assert all(found.recipes[name].coefficients for name in learnt)
    assert found.recipe.coefficients or found.name == REFERENCE


def test_without_validation_sets_halves_choose(module, make_trainer):
    test = {"id/a": loader(20, 2), "id/b": loader(13, 5), "ood/far": loader(15, 4)}
    found = tune(make_trainer(), module, None, test, space=SPACE, masks=2, seed=3)
    sizes = {name: outcomes.shape[1] for name, outcomes in found.test.outcomes.items()}
    assert sizes == {"id/a": 10, "id/b": 7, "ood/far": 15}
    assert {name: outcomes.shape[1] for name, outcomes in found.validation.outcomes.items()} == {"id/a": 10, "id/b": 6}
    assert found.halved
    assert "halves of the ID sets" in found.recommendation[1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"strategy": "halvin"}, "unknown strategy 'halvin'. Did you mean 'halving'"),
        ({"choice": "bets"}, "unknown choice 'bets'. Did you mean 'best'"),
        ({"space": {"rules": ["tsvm"]}}, "Did you mean 'tsv_m'"),
        ({"space": SPACE, "budget": 3, "strategy": "grid"}, "give a budget of 8"),
        ({"budget": "10mins"}, "Did you mean 'min'"),
        ({"masks": -1}, "masks must be at least 0"),
        ({"at_once": 0}, "at_once must be at least 1"),
        ({"statistic": 1}, "Did you mean 'statistics'"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(given, told, module, validation, make_trainer, monkeypatch):
    monkeypatch.setattr(sys.modules["lwptv_lightning.search.tune"], "sweep", lambda *_, **__: pytest.fail("ran"))
    with pytest.raises((ValueError, TypeError, UnknownNameError), match=told):
        tune(make_trainer(), module, validation, {"id/a": loader(20, 2)}, **given)

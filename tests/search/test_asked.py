"""A sweep goes on where it was, and serves nothing that something else was measured of."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from _helpers.swept import small_loaders, small_module, small_samples
from lightning.pytorch import Trainer

from lwptv_lightning import MergeRecipe
from lwptv_lightning.search import Gates, sweep
from lwptv_lightning.search.passes import CandidatesModule

CANDIDATES = {
    "sum": "task_arithmetic",
    "half": MergeRecipe(scale=0.15),
    "pruned": MergeRecipe("ties", ratio=0.5),
    "fisher": "fisher",
    "gates": Gates(rule="task_arithmetic", steps=2, images=8),
    "gates x 0.5": Gates(rule="task_arithmetic", steps=2, images=8, scale=0.5),
}


class Killed(BaseException):
    pass


@pytest.fixture
def ran(monkeypatch):
    """How many candidates each pass measured, and how many fits there were."""
    counts = {"measured": [], "fits": 0, "kill": None}
    validate, fit = Trainer.validate, Trainer.fit

    def counted(trainer, step, *given, **named):
        models = len(step._weights) if isinstance(step, CandidatesModule) else -1
        if models:
            if counts["kill"] is not None and len(counts["measured"]) >= counts["kill"]:
                raise Killed
            counts["measured"].append(models)
        return validate(trainer, step, *given, **named)

    def fitted(*given, **named):
        counts["fits"] += 1
        return fit(*given, **named)

    monkeypatch.setattr(Trainer, "validate", counted)
    monkeypatch.setattr(Trainer, "fit", fitted)
    return counts


@pytest.fixture
def run(tmp_path, make_trainer):
    def run(candidates=CANDIDATES, loaders=None, module=None, store="store", **options):
        given = {"samples": small_samples(), "at_once": 2} | options
        loaders = small_loaders() if loaders is None else loaders
        module = small_module() if module is None else module
        return sweep(make_trainer(), module, candidates, loaders, store=store and tmp_path / store, **given)

    return run


def assert_same(found, expected, *, seconds=True):
    assert found.names == expected.names
    for loader, outcomes in expected.outcomes.items():
        assert torch.equal(found.outcomes[loader], outcomes)
        assert found.outcomes[loader].dtype == torch.bool
    assert found.changes == expected.changes
    assert list(found.seconds) == list(expected.seconds)
    assert not seconds or found.seconds == expected.seconds


def files_in(folder):
    """What files of a store hold, but for the seconds."""
    found = {}
    for path in Path(folder).iterdir():
        content = path.read_text()
        if path.suffix == ".json":
            content = json.loads(content)["content"]
            if isinstance(content["found"], dict):
                content["found"].pop("seconds", None)
        found[path.name] = content
    return found


def test_a_second_sweep_runs_nothing_and_finds_the_same(run, ran, tmp_path):
    plain = run(store=None)
    first = run()
    before = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    ran.update(measured=[], fits=0)
    second = run()
    assert ran["measured"] == []
    assert ran["fits"] == 0
    assert_same(second, first)
    assert_same(first, plain, seconds=False)
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == before
    named = {f"new {name}": candidate for name, candidate in reversed(CANDIDATES.items())}
    third = run(named)
    assert ran["measured"] == []
    assert all(third.figures(f"new {name}") == first.figures(name) for name in CANDIDATES)


@pytest.mark.parametrize("passes", [0, 1, 2, 3])
def test_a_sweep_that_was_killed_goes_on_and_ends_with_the_same_files(passes, run, ran, tmp_path):
    whole = run(store="whole")
    ran.update(measured=[], kill=passes)
    with pytest.raises(Killed):
        run()
    ran.update(measured=[], kill=None)
    found = run()
    assert_same(found, whole, seconds=False)
    assert files_in(tmp_path / "store") == files_in(tmp_path / "whole")
    assert sum(each for each in ran["measured"] if each > 0) <= len(CANDIDATES) - 2 * max(passes - 1, 0)


def other_data():
    loaders = small_loaders()
    loaders["ood/far"].dataset.tensors[0][3, 1] += 1e-6
    return {"loaders": loaders}


def other_label():
    loaders = small_loaders()
    loaders["id/b"].dataset.tensors[1][0] = (loaders["id/b"].dataset.tensors[1][0] + 1) % 5
    return {"loaders": loaders}


def other_head():
    module = small_module()
    with torch.no_grad():
        module.heads["b"].bias[0] += 1
    return {"module": module}


def other_samples():
    return {"samples": small_samples(seed=2)}


@pytest.mark.parametrize(
    ("change", "measured"), [(other_data, 6), (other_label, 6), (other_head, 6), (other_samples, 3)]
)
def test_what_was_measured_on_something_else_is_not_served(change, measured, run, ran):
    run()
    ran["measured"].clear()
    found = run(**change())
    assert sum(each for each in ran["measured"] if each > 0) == measured
    assert_same(found, run(**change(), store=None), seconds=False)


def test_recalibrated_and_plain_recipes_are_stored_apart(run, ran):
    candidates = {"sum": "task_arithmetic", "own": dict(small_module().model.state_dict())}
    plain = run(candidates)
    ran["measured"].clear()
    found = run(candidates, recalibrate=True)
    assert sum(ran["measured"]) == 1  # weights that are given are the same
    assert found.figures("sum") != plain.figures("sum")
    assert_same(run(candidates, recalibrate=True), found)
    assert_same(run(candidates), plain)


def test_damaged_files_are_measured_anew_with_a_warning(run, ran, tmp_path):
    first = run()
    damaged = sorted((tmp_path / "store").glob("*-*.json"))[:2]
    damaged[0].write_text(damaged[0].read_text().replace('"right": "', '"right": "A'))
    damaged[1].write_bytes(b"")
    ran["measured"].clear()
    with pytest.warns(UserWarning, match="is damaged") as told:
        found = run()
    assert len([each for each in told if "is damaged" in str(each.message)]) == 2
    assert sum(each for each in ran["measured"] if each > 0) == 2
    assert_same(found, first, seconds=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*damaged")
        assert_same(run(), found)


def test_more_candidates_are_measured_alone(run, ran):
    few = dict(list(CANDIDATES.items())[:2])
    run(few)
    ran["measured"].clear()
    assert_same(run(), run(store=None), seconds=False)
    assert sum(each for each in ran["measured"][: len(ran["measured"]) // 2] if each > 0) <= len(CANDIDATES) - len(few)


def test_a_place_that_is_no_folder_is_refused_before_the_work(run, ran, tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(NotADirectoryError, match="store: .* is no folder"):
        run()
    assert ran["measured"] == []


def test_unknown_weights_are_refused_before_the_work(run, ran):
    with pytest.raises(KeyError, match="0.weigth"):
        run({"sum": "ties", "mine": {"0.weigth": torch.zeros(8, 4)}})
    assert ran["measured"] == []


def test_a_task_that_is_none_is_refused_before_the_work(run, ran):
    with pytest.raises(KeyError, match="candidate 'mine': unknown task 'c'"):
        run({"sum": "ties", "mine": MergeRecipe("emr", task="c")})
    assert ran["measured"] == []


@pytest.mark.parametrize(
    "recipe",
    [
        {"rule": {"name": "actmat", "split": ["0.weight"]}},
        {"calibrate": {"name": "subspace_boosting", "split": ["0.weight"]}},
    ],
)
def test_a_matrix_that_cannot_be_divided_is_refused_before_the_work(recipe, run, ran):
    with pytest.raises(ValueError, match="candidate 'mine': split.*'0.weight'.* 8 rows"):
        run({"ties": "ties", "mine": recipe})
    assert ran["measured"] == []

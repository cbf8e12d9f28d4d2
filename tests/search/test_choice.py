import itertools
import math
import re
from pathlib import Path

import pytest
import torch

from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import SweepResult, best, one_standard_error
from lwptv_lightning.zoo.demo import quiet_lightning


def drawn(seed, candidates=8, sizes=(40, 25), shift=0.01):
    """Candidates that are right together on most samples, and better the farther they are from the base."""
    generator = torch.Generator().manual_seed(seed)
    outcomes = {}
    for number, size in enumerate(sizes):
        hard = torch.rand(size, generator=generator)
        luck = 0.2 * torch.rand(candidates, size, generator=generator)
        outcomes[f"id/{number}"] = hard + luck < 0.5 + shift * torch.arange(candidates)[:, None]
    names = tuple(f"x {number}" for number in range(candidates))
    return SweepResult(names, outcomes, {}, {name: 0.5 * number for number, name in enumerate(names)})


def slow_choice(result):
    """Return both choices: averages, differences and their errors from plain means and variances."""
    accuracy = {name: result.figures(name)["id/avg"] for name in result.names}
    top = max(accuracy.values())
    first = min((n for n in result.names if accuracy[n] > top - 1e-9), key=lambda name: result.changes[name])
    near = []
    for name in result.names:
        changes = [(result.correct(first)[k].double() - result.correct(name)[k].double()) for k in result.outcomes]
        error = math.sqrt(sum(float(each.var()) / len(each) for each in changes)) / len(changes)
        if accuracy[first] - accuracy[name] <= error + 1e-12:
            near.append(name)
    return first, min(near, key=lambda name: result.changes[name])


@pytest.mark.parametrize("seed", range(12))
def test_choices_are_those_of_plain_means_and_variances(seed):
    result = drawn(seed)
    assert (best(result), one_standard_error(result)) == slow_choice(result)


def test_the_error_is_that_of_a_bootstrap_of_the_difference():
    result = drawn(1)
    top = best(result)
    generator = torch.Generator().manual_seed(0)
    near = []
    for name in result.names:
        draws = torch.zeros(20_000)
        for loader in result.outcomes:
            change = result.correct(top)[loader].float() - result.correct(name)[loader].float()
            draws += change[torch.randint(len(change), (20_000, len(change)), generator=generator)].mean(1) / 2
        if result.difference(top, name, "id", draws=1).value <= draws.std():
            near.append(name)
    assert one_standard_error(result) == near[0]
    assert near[0] != top


def test_the_nearer_one_is_taken_only_where_samples_cannot_tell():
    few, many = (drawn(2, sizes=(size, size), shift=0.01) for size in (60, 20_000))
    assert few.changes[one_standard_error(few)] < few.changes[best(few)]
    assert many.names.index(one_standard_error(many)) >= len(many.names) - 2


def tied(changes):
    outcomes = {"id/a": torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]]).bool()}
    return SweepResult(("x", "y", "z"), outcomes, {}, changes)


@pytest.mark.parametrize("choose", [best, one_standard_error])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [((2.0, 1.0, 3.0), "y"), ((2.0, 1.0, 1.0), "y"), ((1.0, 1.0, 1.0), "x"), ((math.nan, math.inf, 9.0), "z")],
)
def test_ties_go_to_the_nearest_then_to_the_first(choose, changes, expected):
    assert choose(tied(dict(zip("xyz", changes, strict=True)))) == expected


def test_equal_averages_are_equal_also_where_floats_are_not():
    # 1/3 + 1/7 + ... in other orders; the last candidate is nearest to the base.
    sizes = (3, 7, 9, 11)
    for order in itertools.permutations(range(4)):
        outcomes = {f"id/{n}": torch.zeros(2, sizes[n]).bool() for n in order}
        for right in outcomes.values():
            right[:, 0] = True
        outcomes["id/0"] = torch.tensor([[True, False, False], [False, False, True]])
        assert best(SweepResult(("far", "near"), outcomes, {}, {"far": 2.0, "near": 1.0})) == "near"


def test_without_norms_the_best_is_the_first_of_equals_and_no_nearest_can_be_told():
    assert best(tied({})) == "x"
    with pytest.raises(ValueError, match="norm of change of candidate 'y' is not known"):
        one_standard_error(tied({"x": 1.0}))
    assert one_standard_error(tied({"x": 1.0}), names=["x"]) == "x"


def test_names_and_domain_say_what_is_chosen_among():
    result = drawn(2)
    assert best(result, names=["x 1", "x 0"]) in ("x 0", "x 1")
    only = SweepResult(result.names, {"id/a": result.outcomes["id/0"], "ood/near/b": result.outcomes["id/1"]}, {})
    near = SweepResult(result.names, {"id/a": result.outcomes["id/1"]}, {})
    assert best(only, "ood/near") == best(near)


@pytest.mark.parametrize("choose", [best, one_standard_error])
def test_what_cannot_be_chosen_is_refused(choose):
    result = drawn(0)
    with pytest.raises(UnknownNameError, match="unknown domain 'odd'"):
        choose(result, "odd")
    with pytest.raises(UnknownNameError, match="Did you mean 'x 1'"):
        choose(result, names=["x 0", "X 1"])
    with pytest.raises(ValueError, match="no candidate to choose among"):
        choose(result, names=[])
    with pytest.raises(TypeError, match="names must be names of candidates"):
        choose(result, names="x 0")
    with pytest.raises(TypeError, match="result must be a SweepResult"):
        choose({"x": 1})
    with pytest.raises(ValueError, match="has no sample"):
        choose(SweepResult(("x",), {"id/a": torch.zeros(1, 0).bool()}, {}, {"x": 1.0}))


def test_one_sample_has_no_standard_error():
    single = SweepResult(("x", "y"), {"id/a": torch.tensor([[True], [False]])}, {}, {"x": 1.0, "y": 0.0})
    assert best(single) == "x"
    with pytest.raises(ValueError, match="'id/a' has a single sample"):
        one_standard_error(single)


def test_the_examples_of_the_docs_run(capsys, monkeypatch, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    chapter = page.split("## Many recipes, and which to take")[1].split("\n## ")[0]
    names = {}
    monkeypatch.chdir(tmp_path)
    with quiet_lightning():
        for block in re.findall("```python\n(.*?)```", chapter, re.DOTALL):
            exec(block.replace("size=60", "size=12"), names)
    first, *differences, fronts = capsys.readouterr().out.splitlines()
    assert first.split()[0] == "x"
    assert [line.split()[0] for line in differences] == ["id", "ood/near", "ood/far"]
    assert len(re.findall(r"[+-]\d+\.\d \[", fronts)) == 3
    validation, top, near = (names[name] for name in ("validation", "top", "near"))
    assert validation.changes[near] <= validation.changes[top]

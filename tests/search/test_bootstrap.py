import math

import pytest
import torch

from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import SweepResult
from lwptv_lightning.search.bootstrap import averaged, drawn_averages, leaves_of

SIZES = {"id/a": 12, "id/b": 7, "ood/near/c": 9}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def result(seed, names="xyz", sizes=SIZES):
    drawn = generator(seed)
    outcomes = {name: torch.rand(len(names), size, generator=drawn) < 0.6 for name, size in sizes.items()}
    return SweepResult(tuple(names), outcomes, {})


def test_draws_are_those_of_samples_picked_one_by_one():
    leaves = [result(1), result(2, "zyxw")]
    found = drawn_averages(leaves, ["z", "x"], ["id", "ood/near", ("id", "ood")], 5, generator(4))
    again = generator(4)
    picked = {name: torch.randint(size, (5, size), generator=again) for name, size in SIZES.items()}
    for leaf, own in zip(leaves, found, strict=True):
        assert own.shape == (3, 6, 2)
        for place, name in enumerate("zx"):
            for draw in range(6):
                accuracy = {
                    loader: right[picked[loader][draw - 1]] if draw else right
                    for loader, right in leaf.correct(name).items()
                }
                a, b, c = (float(right.double().mean()) for right in accuracy.values())
                expected = [(a + b) / 2, c, ((a + b) / 2 + c) / 2]
                assert own[:, draw, place].tolist() == pytest.approx(expected, abs=1e-12)


def test_blocks_of_draws_are_the_same(monkeypatch):
    whole = drawn_averages([result(1)], ["x"], ["id/a"], 7, generator())[0]
    monkeypatch.setattr("lwptv_lightning.search.bootstrap._COUNTED_AT_ONCE", 30)
    assert torch.equal(drawn_averages([result(1)], ["x"], ["id/a"], 7, generator())[0], whole)


def test_sets_of_other_sizes_are_drawn_on_their_own():
    other = result(3, sizes={**SIZES, "id/a": 20, "id/new": 4})
    found = drawn_averages([result(1), other], ["x"], ["id"], 3, generator())
    exact = [leaf.figures("x")["id/avg"] for leaf in (result(1), other)]
    assert [float(own[0, 0, 0]) for own in found] == pytest.approx(exact)


def test_replicates_are_drawn_at_each_level():
    one = result(1)
    nested = [[one, one, one], [one], [one, one]]
    values = torch.rand(6, 2, 20_001, generator=generator(5), dtype=torch.float64) + torch.arange(6)[:, None, None]
    values[:, :, 1:] = values[:, :, :1]  # what is left varies by replicates alone
    found = averaged(nested, list(values), generator())
    at = values[:, 0, 0]
    groups = [at[:3], at[3:4], at[4:]]
    means = torch.stack([group.mean() for group in groups])
    assert float(found[0, 0]) == pytest.approx(float(means.mean()), rel=1e-12)
    assert float(found[0, 1:].mean()) == pytest.approx(float(means.mean()), abs=0.03)
    # The law of total variance: groups are drawn, and in each one drawn its members anew.
    within = sum(float(group.var(correction=0)) / len(group) for group in groups) / 3
    expected = (float(means.var(correction=0)) + within) / 3
    assert float(found[0, 1:].var()) == pytest.approx(expected, rel=0.05)


def test_what_is_not_reached_counts_where_it_is_drawn():
    values = [torch.ones(1, 2001), torch.full((1, 2001), math.nan)]
    found = averaged([result(1), result(2)], values, generator())
    assert math.isnan(float(found[0, 0]))
    assert float(found[0, 1:].isnan().double().mean()) == pytest.approx(0.75, abs=0.05)
    assert set(found[0, 1:][~found[0, 1:].isnan()].tolist()) == {1.0}


def test_what_are_no_results_is_told():
    first, second = result(1), result(2)
    assert leaves_of([[first], [second, first]]) == [first, second, first]
    for empty in ([], [[first], []], ""):
        with pytest.raises(ValueError, match="expected at least one SweepResult"):
            leaves_of(empty)
    with pytest.raises(TypeError, match="results must be a SweepResult"):
        leaves_of([first, 3])
    with pytest.raises(UnknownNameError, match="domain"):
        drawn_averages([first], ["x"], ["ood/far"], 1, generator())
    with pytest.raises(ValueError, match="has no sample"):
        drawn_averages([result(1, sizes={"id/a": 0})], ["x"], ["id"], 1, generator())

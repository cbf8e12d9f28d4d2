"""Figures of fronts against plain loops over points and samples."""

import dataclasses
import itertools
import math

import pytest
import torch

from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import Front, SweepResult, compare_fronts

# Plain loops, written from the definitions.


def slow_front(points):
    """Return the points that no other one beats, by x."""
    found = {p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)}
    return sorted(found)


def slow_highest(points, level):
    """Return the largest y on the broken line through the front where x is at least the level."""
    front = slow_front(points)
    if level > front[-1][0]:
        return math.nan
    below = [point for point in front if point[0] < level]
    (x, y) = next(point for point in front if point[0] >= level)
    if not below:
        return y
    (x_below, y_below) = below[-1]
    return y_below + (y - y_below) * (level - x_below) / (x - x_below)


def slow_area(points, reference):
    """Return the area by counting the cells of the grid that the coordinates make."""
    xs, ys = (sorted({reference[axis], *(p[axis] for p in points if p[axis] > reference[axis])}) for axis in (0, 1))
    cells = [(*x, *y) for x in itertools.pairwise(xs) for y in itertools.pairwise(ys)]
    return sum((b - a) * (d - c) for a, b, c, d in cells if any(p[0] >= b and p[1] >= d for p in points))


def swapped(points):
    return [(y, x) for x, y in points]


def slow_figures(ours, theirs, at, reference):
    if at is None:
        at = max(theirs, key=lambda point: round(sum(point), 9))
    return [
        max((x + y) / 2 for x, y in ours) - max((x + y) / 2 for x, y in theirs),
        slow_highest(swapped(ours), at[1]) - slow_highest(swapped(theirs), at[1]),
        slow_highest(ours, at[0]) - slow_highest(theirs, at[0]),
        slow_area(ours, reference) - slow_area(theirs, reference),
    ]


def some_points(seed, count):
    """Points on a coarse grid, so that many are equal in one figure or in both."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 9, (2, count), generator=generator).double() / 8


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_figures_of_many_fronts_are_those_of_plain_loops(count):
    every = torch.stack([some_points(seed, count) for seed in range(60)])
    levels = [0.0, 0.125, 0.3, 0.5, 0.77, 1.0]
    fronts = Front(every[:, 0], every[:, 1])
    reference = (0.25, 0.3)
    at = {level: (fronts.id_at(level), fronts.ood_at(level)) for level in levels}
    mean, area, on_front, best_point = (
        fronts.best_mean,
        fronts.hypervolume(reference),
        fronts.on_front,
        fronts.best_point,
    )
    for index, (x, y) in enumerate(every.tolist()):
        points = list(zip(x, y, strict=True))
        assert sorted(p for p, on in zip(points, on_front[index], strict=True) if on) == slow_front(points)
        assert float(mean[index]) == max((a + b) / 2 for a, b in points)
        assert int(best_point[index]) == max(range(count), key=lambda place: (sum(points[place]), -place))
        assert float(area[index]) == pytest.approx(slow_area(points, reference), abs=1e-12)
        for level in levels:
            found = [float(each[index]) for each in at[level]]
            expected = [slow_highest(swapped(points), level), slow_highest(points, level)]
            assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_one_front_is_read_at_many_levels():
    front = Front(*some_points(3, 6))
    levels = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = [float(front.ood_at(float(level))) for level in levels]
    assert front.ood_at(levels).tolist() == pytest.approx(expected, nan_ok=True)


def test_equal_levels_are_reached_whatever_the_last_bit():
    x = torch.tensor([0.1 + 0.2, 0.6], dtype=torch.float64)
    assert float(Front(x, x.flip(0)).ood_at(0.3)) == pytest.approx(0.6)
    assert float(Front(x, x.flip(0)).ood_at(0.6 + 1e-12)) == pytest.approx(0.3)


def test_points_that_differ_by_rounding_alone_are_equal():
    averages = torch.tensor([sum((0.1, 0.2, 0.3)) / 3, sum((0.3, 0.2, 0.1)) / 3], dtype=torch.float64)
    assert averages[0] > averages[1]
    assert Front(averages, torch.tensor([0.5, 0.6])).on_front.tolist() == [False, True]
    assert Front(torch.tensor([0.5, 0.6]), averages).on_front.tolist() == [False, True]
    assert Front(averages.flip(0), torch.tensor([0.5, 0.5])).on_front.tolist() == [True, False]


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        ([0.6, 0.7], TypeError, "id must be a tensor of averages"),
        (torch.tensor([60, 70]), TypeError, "id must be a tensor of floats, not of int64"),
        (torch.tensor([0.6, math.nan]), ValueError, "id must be finite, and a point has nan"),
    ],
)
def test_points_that_no_front_goes_through_are_refused(points, error, message):
    with pytest.raises(error, match=message):
        Front(points, torch.tensor([0.9, 0.8]))
    with pytest.raises(error, match=message.replace("id must", "ood must")):
        Front(torch.tensor([0.9, 0.8]), points)


@pytest.mark.parametrize("shapes", [((2,), (3,)), ((0,), (0,)), ((), ())])
def test_points_have_both_figures(shapes):
    with pytest.raises(ValueError, match="id and ood must be of one shape"):
        Front(*map(torch.zeros, shapes))


# Two methods, from samples.

SIZES = {"id/a": 30, "id/b": 20, "ood/near/c": 25, "ood/far/d": 15}
OURS, THEIRS = ("base", "pruned 1", "pruned 2"), ("base", "plain 1", "plain 2", "plain 3")
NAMES = tuple(dict.fromkeys(OURS + THEIRS))


def result(seed, better=0.1, size=1):
    generator = torch.Generator().manual_seed(seed)
    outcomes = {}
    for name, count in SIZES.items():
        level = torch.linspace(0.45, 0.75, len(NAMES)) if name[:2] == "id" else torch.linspace(0.8, 0.4, len(NAMES))
        level = level + better * torch.tensor(["pruned" in each for each in NAMES])
        outcomes[name] = torch.rand(1, count * size, generator=generator) < level[:, None]
    return SweepResult(NAMES, outcomes, {})


def drawn_by_hand(leaf, ood, draws, seed):
    """Return the points of each draw, picked sample by sample."""
    loaders = [name for name in SIZES if name.startswith("id/") or f"{name}/".startswith(f"{ood}/")]
    generator = torch.Generator().manual_seed(seed)
    picked = {name: torch.randint(SIZES[name], (draws, SIZES[name]), generator=generator) for name in loaders}
    for draw in range(-1, draws):
        points = {}
        for name in NAMES:
            right = {loader: leaf.correct(name)[loader] for loader in loaders}
            if draw >= 0:
                right = {loader: each[picked[loader][draw]] for loader, each in right.items()}
            sums = {"id": [], "ood": []}
            for loader, each in right.items():
                sums[loader.split("/")[0]].append(sum(each.tolist()) / len(each))
            points[name] = tuple(sum(each) / len(each) for each in sums.values())
        yield points


@pytest.mark.parametrize("ood", ["ood", "ood/near"])
@pytest.mark.parametrize(("at", "reference"), [(None, (0.0, 0.0)), ("base", "base"), ((0.55, 0.6), (0.4, 0.3))])
def test_the_interval_is_that_of_fronts_drawn_one_by_one(ood, at, reference):
    leaf, draws = result(1), 60
    found = compare_fronts(leaf, OURS, THEIRS, ood=ood, at=at, reference=reference, draws=draws, seed=3)
    slow = []
    for points in drawn_by_hand(leaf, ood, draws, seed=3):
        places = (points[each] if isinstance(each, str) else each for each in (at, reference))
        slow.append(slow_figures([points[name] for name in OURS], [points[name] for name in THEIRS], *places))
    for index, field in enumerate(dataclasses.fields(found)):
        difference = getattr(found, field.name)
        value, *others = (figures[index] for figures in slow)
        assert difference.value == pytest.approx(value, abs=1e-9, nan_ok=True), field.name
        low = sorted(-math.inf if math.isnan(each) else each for each in others)[math.floor(0.025 * (draws - 1))]
        high = sorted(math.inf if math.isnan(each) else each for each in others)[math.ceil(0.975 * (draws - 1))]
        assert (difference.low, difference.high) == pytest.approx((low, high), abs=1e-9), field.name


def test_the_interval_includes_the_choice_of_the_point():
    """Of many equal methods the best one looks better than one of them; drawing anew says by how little that holds."""
    generator = torch.Generator().manual_seed(0)
    outcomes = {name: torch.rand(41, 100, generator=generator) < 0.6 for name in ("id/a", "ood/b")}
    names = tuple(map(str, range(41)))
    found = compare_fronts(SweepResult(names, outcomes, {}), names[1:], names[:1])
    chosen = max(names[1:], key=lambda name: sum(SweepResult(names, outcomes, {}).figures(name).values()))
    fixed = SweepResult(names, outcomes, {}).difference(chosen, "0", ("id", "ood"))
    assert found.mean.value == pytest.approx(fixed.value)
    assert found.mean.standard_error < fixed.standard_error  # the best of forty hardly moves, its one rival does


def test_a_method_is_no_better_than_itself():
    found = compare_fronts(result(2), OURS, OURS, draws=50)
    for field in dataclasses.fields(found):
        difference = getattr(found, field.name)
        assert (difference.value, difference.low, difference.high, difference.standard_error) == (0, 0, 0, 0)


def test_what_one_front_does_not_reach_widens_the_interval():
    leaf = result(1)
    found = compare_fronts(leaf, ["plain 3"], ["base"], draws=100)
    assert math.isnan(found.id_at_ood.value)
    assert found.id_at_ood.low == -math.inf
    assert found.id_at_ood.high == math.inf
    assert math.isfinite(found.ood_at_id.value)


def test_replicates_widen_it_by_what_they_differ_in():
    same = compare_fronts([result(1, size=8)] * 3, OURS, THEIRS, draws=500)
    alone = compare_fronts(result(1, size=8), OURS, THEIRS, draws=500)
    assert same.mean.value == pytest.approx(alone.mean.value)
    assert same.mean.standard_error == pytest.approx(alone.mean.standard_error, rel=1e-6)
    apart = [result(1, better, size=8) for better in (0.0, 0.1, 0.2)]
    differing = compare_fronts(apart, OURS, THEIRS, draws=500)
    values = [compare_fronts(each, OURS, THEIRS, draws=1).mean.value for each in apart]
    assert differing.mean.value == pytest.approx(sum(values) / 3)
    spread = torch.tensor(values).std(correction=0) / 3**0.5
    assert differing.mean.standard_error > 0.9 * spread
    assert differing.mean.standard_error > 1.3 * alone.mean.standard_error
    nested = compare_fronts([apart[:2], apart[2:]], OURS, THEIRS, draws=100)
    assert nested.mean.value == pytest.approx((sum(values[:2]) / 2 + values[2]) / 2)


def test_a_front_of_a_result_has_its_figures():
    leaf = result(4)
    front = Front.of(leaf, OURS, ood="ood/near")
    assert front.id.tolist() == pytest.approx([leaf.figures(name)["id/avg"] for name in OURS])
    assert front.ood.tolist() == pytest.approx([leaf.figures(name)["ood/near/c"] for name in OURS])


def test_wrong_use_is_named():
    leaf = result(1)
    with pytest.raises(UnknownNameError, match="Did you mean 'base'"):
        compare_fronts(leaf, ["bases"], THEIRS)
    with pytest.raises(UnknownNameError, match="candidate 'elsewhere'"):
        compare_fronts(leaf, OURS, THEIRS, at="elsewhere")
    with pytest.raises(UnknownNameError, match="candidate 'pruned 1'"):
        compare_fronts([leaf, SweepResult(("base",), leaf.outcomes, {})], OURS, ["base"])
    with pytest.raises(TypeError, match="first must be names of candidates"):
        compare_fronts(leaf, "base", THEIRS)
    with pytest.raises(ValueError, match="second is empty"):
        compare_fronts(leaf, OURS, ())
    with pytest.raises(UnknownNameError, match="Did you mean 'ood/near'"):
        compare_fronts(leaf, OURS, THEIRS, ood="ood/nea")
    with pytest.raises(ValueError, match="at must be an ID and an OOD average, not 3 numbers"):
        compare_fronts(leaf, OURS, THEIRS, at=(0.1, 0.2, 0.3))
    with pytest.raises(TypeError, match="reference must be a candidate's name, or an ID and an OOD average"):
        compare_fronts(leaf, OURS, THEIRS, reference=None)
    with pytest.raises(ValueError, match="draws"):
        compare_fronts(leaf, OURS, THEIRS, draws=0)

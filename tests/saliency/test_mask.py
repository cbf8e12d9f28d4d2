import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lwptv_lightning import ElementPruning, LayerMask, keep_most_salient
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.saliency import LayerTable


def table(values, numel=None):
    values = torch.tensor(values, dtype=torch.float64)
    tasks, layers = values.shape
    numel = torch.tensor([10.0] * layers if numel is None else numel, dtype=torch.float64)
    return LayerTable(
        tuple(f"task{index}" for index in range(tasks)),
        tuple(f"layer{index}" for index in range(layers)),
        numel,
        values,
    )


@pytest.mark.parametrize("layers", [1, 7, 100])
def test_each_task_loses_the_floor_of_ratio_times_layers(layers):
    scores = table(torch.rand(2, layers, generator=torch.Generator().manual_seed(0)).tolist())
    for percent in range(101):
        # An exact product: in floating point 0.29 * 100 is below 29.
        expected = math.floor(Fraction(percent, 100) * layers)
        assert (~keep_most_salient(scores, percent / 100).kept).sum(1).tolist() == [expected, expected]


def test_the_least_salient_go():
    assert keep_most_salient(table([[3, 1, 2, 4], [1, 2, 3, 4]]), 0.5).kept.tolist() == [
        [True, False, False, True],
        [False, False, True, True],
    ]


def test_of_equal_scores_the_layer_executed_first_goes_first():
    assert keep_most_salient(table([[5] * 6, [5] * 6]), 0.5).kept.tolist() == [[False] * 3 + [True] * 3] * 2


def test_ranking_over_all_tasks():
    scores = table([[0.9, 0.1, 0.5], [0.8, 0.7, 0.1]])
    assert keep_most_salient(scores, 0.5, ranking="all").kept.tolist() == [[True, False, False], [True, True, False]]


def test_ranking_over_all_tasks_breaks_ties_by_layer_then_task():
    assert keep_most_salient(table([[1, 1], [1, 1]]), 0.75, ranking="all").kept.tolist() == [
        [False, False],
        [False, True],
    ]


def test_counting_parameters_stops_before_the_first_layer_that_is_too_much():
    scores = table([[1, 2, 3, 4]], numel=[10, 50, 5, 35])
    pruned = [
        (~keep_most_salient(scores, ratio, count="parameters").kept[0]).sum().item()
        for ratio in (0.09, 0.1, 0.59, 0.6, 0.65, 1)
    ]
    assert pruned == [0, 1, 1, 2, 3, 4]


small = st.integers(min_value=0, max_value=3)
options = {"ranking": st.sampled_from(["task", "all"]), "count": st.sampled_from(["layers", "parameters"])}


@st.composite
def tables(draw):
    tasks, layers = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    values = draw(st.lists(st.lists(small, min_size=layers, max_size=layers), min_size=tasks, max_size=tasks))
    return table(values, draw(st.lists(st.integers(1, 9), min_size=layers, max_size=layers)))


@settings(deadline=None, max_examples=60)
@given(scores=tables(), ratios=st.tuples(st.floats(0, 1), st.floats(0, 1)), **options)
def test_masks_of_growing_ratio_are_nested(scores, ratios, ranking, count):
    low, high = (keep_most_salient(scores, ratio, ranking=ranking, count=count).kept for ratio in sorted(ratios))
    assert (low | ~high).all()


@settings(deadline=None, max_examples=60)
@given(scores=tables(), percent=st.integers(0, 100), **options)
def test_mask_equals_a_walk_over_the_sorted_entries(scores, percent, ranking, count):
    tasks, layers = scores.values.shape
    groups = [[(t, i) for i in range(layers) for t in range(tasks)]]
    if ranking == "task":
        groups = [[(t, i) for i in range(layers)] for t in range(tasks)]
    expected = torch.ones(tasks, layers, dtype=torch.bool)
    for group in groups:
        weight = {(t, i): int(scores.numel[i]) if count == "parameters" else 1 for t, i in group}
        left = math.floor(Fraction(percent, 100) * sum(weight.values()))
        for entry in sorted(group, key=lambda entry: scores.values[entry].item()):
            left -= weight[entry]
            if left < 0:
                break
            expected[entry] = False
    assert torch.equal(keep_most_salient(scores, percent / 100, ranking=ranking, count=count).kept, expected)


@pytest.mark.parametrize("ranking", ["task", "all"])
@pytest.mark.parametrize("count", ["layers", "parameters"])
def test_ratio_0_keeps_and_ratio_1_prunes_everything(ranking, count):
    scores = table([[1, 2], [float("inf"), -float("inf")]], numel=[3, 4])
    assert keep_most_salient(scores, 0, ranking=ranking, count=count).kept.all()
    assert not keep_most_salient(scores, 1, ranking=ranking, count=count).kept.any()


def test_kept_layers_stay_and_pruned_ones_go_first():
    scores = table([[1, 2, 3, 4], [4, 3, 2, 1]])
    assert keep_most_salient(scores, 1, keep=["layer[13]"]).kept.tolist() == [[False, True, False, True]] * 2
    assert keep_most_salient(scores, 0, prune=["layer3"]).kept.tolist() == [[True, True, True, False]] * 2
    # What is pruned by name counts towards the ratio.
    assert keep_most_salient(scores, 0.5, prune=["layer3"]).kept.tolist() == [
        [False, True, True, False],
        [True, True, False, False],
    ]


def test_patterns_that_clash_or_match_nothing():
    with pytest.raises(ValueError, match=r"'layer1' matches both keep=\('layer1',\) and prune=\('\*1',\)"):
        keep_most_salient(table([[1, 2]]), 0.5, keep=("layer1",), prune=("*1",))
    for option in ("keep", "prune"):
        with pytest.raises(UnknownNameError, match="layer pattern 'layr1'. Did you mean 'layer1'"):
            keep_most_salient(table([[1, 2]]), 0.5, **{option: ["layr1"]})


@pytest.mark.parametrize("ratio", [-0.1, 1.01, 40, float("nan")])
def test_ratio_outside_its_range(ratio):
    for use in (lambda: keep_most_salient(table([[1]]), ratio), lambda: ElementPruning(ratio=ratio)):
        with pytest.raises(ValueError, match=r"ratio must lie in \[0, 1\], not .*not percent"):
            use()


@pytest.mark.parametrize("ratio", ["0.5", None, True])
def test_ratio_that_is_no_number(ratio):
    with pytest.raises(TypeError, match="ratio must be a number"):
        keep_most_salient(table([[1]]), ratio)


def test_unknown_ranking_or_count():
    with pytest.raises(UnknownNameError, match="Did you mean 'task'"):
        keep_most_salient(table([[1]]), 0.5, ranking="tasks")
    with pytest.raises(UnknownNameError, match="Did you mean 'layers'"):
        keep_most_salient(table([[1]]), 0.5, count="layer")


def test_masks_compare_by_value():
    mask = keep_most_salient(table([[1, 2]]), 0.5)
    assert mask == keep_most_salient(table([[3, 9]]), 0.5)
    assert mask != LayerMask(mask.tasks, mask.layers, ~mask.kept)
    assert dict(mask) == {"task0": {"layer0": False, "layer1": True}}

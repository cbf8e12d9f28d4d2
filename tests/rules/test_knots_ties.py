import numpy as np
import pytest
import torch
from _helpers.small_matrices import as_floats, assert_near, merged_stack, random_stack, vectors_of
from _helpers.small_models import ties
from _helpers.states import assert_same_bits

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.knots_ties import KnOTSTIES

SHAPES = {"a.weight": (4, 3), "b.weight": (3, 5), "b.bias": (3,), "c.weight": (6, 2), "table": (4, 4), "d.weight": (3,)}
MATRICES = ("a.weight", "b.weight", "c.weight")


def random_model(tasks, seed=0, rank=None):
    return {
        name: random_stack(tasks, shape, seed, rank if name in MATRICES else None) for name, shape in SHAPES.items()
    }


def loop_knots(stacks, density, reduce):
    """Align every matrix, trim all of them together with TIES as it is written for flat vectors, and map back."""
    bases, rows = {}, [[] for _ in next(iter(stacks.values()))]
    for name in MATRICES:
        matrices = as_floats(stacks[name])
        left, values, right = np.linalg.svd(np.concatenate(matrices, axis=1), full_matrices=False)
        kept = values > 1e-5
        width = matrices[0].shape[1]
        bases[name] = left[:, kept]
        for task, row in enumerate(rows):
            own = right[kept, task * width : (task + 1) * width]
            row.extend((np.diag(values[kept]) @ own).ravel().tolist())
    merged = np.array(ties(rows, density, reduce))
    changes, start = {}, 0
    for name, basis in bases.items():
        size = basis.shape[1] * SHAPES[name][1]
        changes[name] = basis @ merged[start : start + size].reshape(basis.shape[1], -1)
        start += size
    return changes


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.7, 1])
@pytest.mark.parametrize(("tasks", "rank"), [(1, None), (2, None), (2, 1), (4, None)])
def test_trims_all_matrices_together_in_their_shared_bases(reduce, density, tasks, rank):
    stacks = random_model(tasks, seed=3, rank=rank)
    result = merge(vectors_of(stacks), MergeRecipe(rule=KnOTSTIES(density=density, reduce=reduce), scale=1.0))
    expected = loop_knots(stacks, density, reduce)
    for name, shape in SHAPES.items():
        assert_near(result[name], expected.get(name, np.zeros(shape)))


def test_included_names_are_merged_and_no_others():
    stacks = random_model(2)
    for include, moved in [(("*",), {*MATRICES, "table"}), (("table", "b.*"), {"table", "b.weight"}), ((), set())]:
        result = merge(vectors_of(stacks), MergeRecipe(rule=KnOTSTIES(include=include)))
        assert {name for name, tensor in result.items() if tensor.any()} == moved


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_is_ties_in_the_space_of_knots_bit_for_bit(reduce):
    vectors = vectors_of(random_model(3))
    recipe = MergeRecipe({"name": "ties", "reduce": reduce}, 0.6, subspace="knots")
    assert_same_bits(merge(vectors, recipe), merge(vectors, MergeRecipe({"name": "knots_ties", "reduce": reduce})))


def test_published_scale_is_that_of_the_authors():
    assert MergeRecipe(rule="knots_ties").effective_scale == 0.6


@pytest.mark.parametrize("shape", [(4, 3), (3, 7), (1, 4), (4, 1)])
def test_one_task_untrimmed_is_kept(shape):
    stack = random_stack(1, shape)
    assert_near(merged_stack(stack, KnOTSTIES(density=1)), stack[0])


def test_a_pruned_task_does_not_count_among_those_that_agree():
    stack = random_stack(3, (5, 4))
    stack[2] = 0
    rule = KnOTSTIES(density=1, reduce="mean")
    assert_near(merged_stack(stack, rule), merged_stack(stack[:2], rule))


def test_a_zero_matrix_takes_no_part_in_the_ranking():
    stacks = random_model(2)
    without = dict(stacks)
    del without["b.weight"]
    stacks["b.weight"] = torch.zeros_like(stacks["b.weight"])
    result = merge(vectors_of(stacks), MergeRecipe(rule="knots_ties"))
    expected = merge(vectors_of(without), MergeRecipe(rule="knots_ties"))
    assert not result["b.weight"].any()
    for name in expected:
        assert torch.equal(result[name], expected[name])


def test_singular_values_below_the_limit_are_dropped():
    stack = 1e-6 * random_stack(2, (3, 3))
    assert not merged_stack(stack, KnOTSTIES(density=1)).any()


@pytest.mark.parametrize("arguments", [{"density": 0}, {"density": 2}, {"reduce": "median"}, {"include": "*"}])
def test_refuses_settings_out_of_range(arguments):
    with pytest.raises((ValueError, TypeError, KeyError), match=next(iter(arguments))):
        KnOTSTIES(**arguments)

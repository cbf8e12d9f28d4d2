"""What every merging rule must do of one, two, eight and twenty tasks, equal and zero ones, in every dtype.

A new rule is tested here without an edit.
"""

import functools

import pytest
import torch
from _helpers.battery import SHAPES, crowds_for, experts, statistics_of
from _helpers.states import assert_same_bits

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.engine import Execution
from lwptv_lightning.rules import RULES

CROWDS = [(rule, number, kind) for rule in sorted(RULES) for number, kind in crowds_for(rule)]
EVERY_CROWD = pytest.mark.parametrize(("rule", "number", "kind"), CROWDS)
FEW = pytest.mark.parametrize(
    ("rule", "number", "kind"), [case for case in CROWDS if case[1:] in ((2, "different"), (8, "mixed"))]
)


def merged(rule, vectors, execution=None, **fields):
    return merge(vectors, MergeRecipe(rule, **fields), data=statistics_of(rule, vectors), execution=execution)


# That the same merge gives the same bits is a test of its own.
usual = functools.cache(lambda rule, number, kind: merged(rule, experts(number, kind)))


def largest(state):
    return max(float(value.double().abs().max()) for value in state.values())


def difference(first, second):
    return {name: first[name].double() - second[name].double() for name in SHAPES}


def base_of(vectors):
    return {name: vectors.base(name) for name in SHAPES}


@EVERY_CROWD
def test_weights_are_finite(rule, number, kind):
    result = usual(rule, number, kind)
    assert {name: tuple(value.shape) for name, value in result.items()} == SHAPES
    assert all(torch.isfinite(value).all() for value in result.values())


@EVERY_CROWD
def test_double_precision_gives_what_single_gives(rule, number, kind):
    single = difference(usual(rule, number, kind), base_of(experts(number, kind)))
    double = experts(number, kind, torch.float64)
    result = merged(rule, double, dtype="float64")
    assert all(value.dtype == torch.float64 for value in result.values())
    change = difference(result, base_of(double))
    assert largest(difference(single, change)) <= 1e-4 * largest(change)


@pytest.mark.parametrize(("rule", "number", "kind"), [case for case in CROWDS if RULES[case[0]].has_parts()])
def test_parts_sum_to_the_merged_model(rule, number, kind):
    whole = usual(rule, number, kind)
    error = largest(difference(merged(rule, experts(number, kind), prune_on="parts"), whole))
    assert error <= 1e-5 * largest(whole)


@FEW
def test_blocks_change_no_bit(rule, number, kind):
    small = merged(rule, experts(number, kind), Execution(block_bytes=100 * 4 * number))
    assert_same_bits(small, usual(rule, number, kind))


@FEW
def test_the_order_of_tasks_does_not_matter(rule, number, kind):
    vectors = experts(number, kind)
    turned = vectors.select([*vectors.tasks[1:], vectors.tasks[0]])
    result = merge(turned, MergeRecipe(rule), data=statistics_of(rule, vectors))
    change = difference(usual(rule, number, kind), base_of(vectors))
    assert largest(difference(result, usual(rule, number, kind))) <= 1e-4 * largest(change)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_threads_change_no_bit(rule):
    number, kind = crowds_for(rule)[-1]
    vectors, before = experts(number, kind), torch.get_num_threads()
    data = statistics_of(rule, vectors)
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(merge(vectors, MergeRecipe(rule), data=data))
    finally:
        torch.set_num_threads(before)
    assert_same_bits(*found)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_half_precision_is_rounded_once_at_the_end(rule):
    half = experts(2, dtype=torch.bfloat16)
    states = {task: {name: half.expert(task, name).float() for name in SHAPES} for task in half.tasks}
    single = TaskVectors.open({name: value.float() for name, value in base_of(half).items()}, states)
    expected = {name: value.to(torch.bfloat16) for name, value in merged(rule, single).items()}
    assert_same_bits(merged(rule, half), expected)

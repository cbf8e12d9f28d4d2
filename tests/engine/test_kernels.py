"""Kernels against plain loops over lists, and against all numbers that a source may hold."""

import pytest
import torch
from _helpers.kernels import COMPILED, Rows, everything
from _helpers.small_models import (
    in_consensus,
    middle,
    one_tensor,
    quick,
    random_rows,
    sign,
    task_rows,
    ties,
    trimmed,
    vectors_of,
)
from _helpers.states import as_bytes
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.engine import Program, merge_fused
from lwptv_lightning.engine.fused import vote_fused
from lwptv_lightning.engine.program import LARGEST_OF_AGREEING, MEAN_OF_AGREEING, SUM, SUM_OF_AGREEING
from lwptv_lightning.functional import combine_agreeing, elect_signs, sum_tasks


def merged_row(rows, rule, layout=one_tensor):
    merged = merge(vectors_of(rows, layout), MergeRecipe(rule, scale=1.0), execution=COMPILED)
    return [value for tensor in merged.values() for value in tensor.flatten().tolist()]


def float32(values):
    return torch.tensor(values, dtype=torch.float64).float().tolist()


SMALL = st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0])


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@quick
@given(task_rows(), SMALL)
@example([[1.0, -1.0, 2.0], [-1.0, 1.0, 1.0]], 1.0)  # two votes are tied
def test_ties_is_that_of_plain_loops(reduce, rows, density):
    trims = [trimmed(row, density) for row in rows]
    # Where no sign has a majority either, the largest value is none: the tests of ties and reductions have that.
    assume(reduce != "max" or sum(sign(sum(column)) for column in zip(*trims, strict=True)))
    expected = float32(ties(rows, density, reduce))
    assert merged_row(rows, {"name": "ties", "density": density, "reduce": reduce}) == expected


@quick
@given(task_rows(), SMALL, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_breadcrumbs_are_those_of_plain_loops(rows, density, outliers):
    expected = [sum(column) for column in zip(*[middle(row, density, outliers) for row in rows], strict=True)]
    assert merged_row(rows, {"name": "breadcrumbs", "density": density, "outliers": outliers}) == expected


@quick
@given(task_rows(), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 4))
def test_consensus_is_that_of_plain_loops(rows, tall_lambda, min_tasks):
    expected = in_consensus(rows, [sum(column) for column in zip(*rows, strict=True)], tall_lambda, min_tasks)
    rule = {"name": "consensus_ta", "tall_lambda": tall_lambda, "min_tasks": min_tasks}
    assert merged_row(rows, rule) == expected


@pytest.mark.parametrize("size", [1, 31, 1023, 1024, 1025, 2050])
def test_every_element_of_a_tile_and_beyond_is_merged(size):
    rows = random_rows(3, size, seed=size)
    expected = torch.zeros(size)
    for row in rows:
        expected += torch.tensor(row)
    assert merged_row(rows, "task_arithmetic") == expected.tolist()
    assert merged_row(rows, {"name": "ties", "density": 1.0, "reduce": "max"}) == float32(ties(rows, 1.0, "max"))


def all_bfloat16():
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return values[values.isfinite()]


def test_every_bfloat16_is_read_as_it_is():
    values = all_bfloat16()
    stack = Rows([values])
    assert torch.equal(merge_fused(Program(1), stack, everything(stack)), values.float())


@pytest.mark.filterwarnings("ignore:task 'a'")  # these are no weights of a model
def test_every_bfloat16_is_subtracted_and_added_in_float32():
    values = all_bfloat16()
    base = values.flip(0).where(values.abs() < 1e30, 0)
    tuned = values.where(values.abs() < 1e30, 0)
    vectors = TaskVectors.open({"w": base}, {"a": {"w": tuned}})
    merged = merge(vectors, MergeRecipe(scale=0.5), execution=COMPILED)["w"]
    change = (tuned.float() - base.float()).double()
    assert torch.equal(merged, (base.double() + 0.5 * change).float().bfloat16())


@pytest.mark.parametrize("scale", [None, 0.0, 0.3, -2.0])
def test_a_scale_adds_to_the_base(scale):
    rows, base = torch.tensor([[1.0, -2.0, 0.0], [3.0, 5.0, 0.0]]), torch.tensor([10.0, 20.0, 30.0])
    stack = Rows(rows, base)
    total = rows.sum(0)
    expected = total if scale is None else base.double() + torch.tensor(scale).double() * total.double()
    assert torch.equal(merge_fused(Program(2), stack, everything(stack), scale=scale), expected.float())


@pytest.mark.parametrize("tie", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("reduction", [SUM, MEAN_OF_AGREEING, SUM_OF_AGREEING, LARGEST_OF_AGREEING])
def test_where_rows_cancel_the_tie_decides(reduction, tie):
    stack = Rows([[1.0, 0.0, 4.0, -3.0], [-1.0, 0.0, -1.0, 1.0], None])
    merged = merge_fused(Program(3, reduction=reduction, tie=tie), stack, everything(stack)).tolist()
    # Where no sign is elected the largest is none, and the others take the negative entries, as in the authors' code.
    negative = 0.0 if tie == 0 and reduction == LARGEST_OF_AGREEING else -1.0
    cancelled = 0.0 if reduction == SUM else 1.0 if tie > 0 else negative
    assert merged == [cancelled, 0.0, 3.0 if reduction == SUM else 4.0, -2.0 if reduction == SUM else -3.0]


@pytest.mark.parametrize("size", [0, 1, 1024, 1025, 5000])
def test_votes_are_counted(size):
    generator = torch.Generator().manual_seed(size)
    rows = torch.randint(-3, 4, (3, size), generator=generator).float()
    stack = Rows([rows[0], None, rows[1], rows[2]])
    assert vote_fused(Program(4), stack, everything(stack)) == rows.sum(0).sign().sum()
    thresholds = torch.tensor([2.0, 0.0, 3.0, 1.0])
    kept = [row * (row.abs() >= least) for row, least in zip(rows, (2, 3, 1), strict=True)]
    found = vote_fused(Program(4, limits=thresholds), stack, everything(stack))
    assert found == torch.stack(kept).sum(0).sign().sum()


REDUCTIONS = {SUM: None, MEAN_OF_AGREEING: "mean", SUM_OF_AGREEING: "sum"}


@pytest.mark.parametrize("tie", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_zeros_have_the_sign_that_they_have_in_torch(reduction, tie):
    rows = torch.cartesian_prod(*[torch.tensor([0.0, -0.0, 1.0, -1.0])] * 3).T.contiguous()
    expected = sum_tasks(rows)
    if reduction != SUM:
        expected = combine_agreeing(rows, elect_signs(rows, tie), REDUCTIONS[reduction])
    program = Program(3, reduction=reduction, tie=tie)
    for base in (torch.zeros(64), -torch.zeros(64)):
        stack = Rows(rows, base)
        assert as_bytes(merge_fused(program, stack, everything(stack))) == as_bytes(expected)
        found = merge_fused(program, stack, everything(stack), scale=0.5)
        assert as_bytes(found) == as_bytes(base.clone().add_(expected, alpha=0.5))

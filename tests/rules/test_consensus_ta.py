import pytest
import torch
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import in_consensus, merged_row, quick, task_rows
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.functional import tall_masks
from lwptv_lightning.rules.consensus_ta import ConsensusTA


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule="consensus_ta"))
    assert largest_error(result, golden_output("consensus_ta.k2")) < 1e-6


def test_masks_equal_the_reference_bit_for_bit():
    vectors, stored = golden_vectors("main"), golden_output("tall_masks.lam.4")
    for name in vectors.names:
        tau = vectors.stack(name)
        masks = tall_masks(tau, tau.sum(0), 0.4)
        for task, mask in zip(vectors.tasks, masks, strict=True):
            assert torch.equal(mask, stored[f"{task}::{name}"].float()), (task, name)


@quick
@given(task_rows(), st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), st.integers(1, 4))
def test_keeps_the_sum_where_it_matters_to_enough_tasks(rows, tall_lambda, min_tasks):
    expected = in_consensus(rows, [sum(column) for column in zip(*rows, strict=True)], tall_lambda, min_tasks)
    assert merged_row(rows, ConsensusTA(tall_lambda=tall_lambda, min_tasks=min_tasks)) == pytest.approx(expected)


def test_the_inequality_is_strict():
    # |1| > 0.5 * |3 - 1| does not hold, |2| > 0.5 * |3 - 2| does.
    assert merged_row([[1.0], [2.0]], ConsensusTA(tall_lambda=0.5, min_tasks=2)) == [0.0]
    assert merged_row([[1.0], [2.0]], ConsensusTA(tall_lambda=0.5, min_tasks=1)) == [3.0]


def test_more_tasks_than_there_are_keep_nothing():
    assert merged_row([[1.0, 2.0], [1.0, 2.0]], ConsensusTA(min_tasks=3)) == [0.0, 0.0]


@pytest.mark.parametrize("arguments", [{"tall_lambda": -0.1}, {"min_tasks": -1}])
def test_refuses_values_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ConsensusTA(**arguments)

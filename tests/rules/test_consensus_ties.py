import pytest
import torch
from _helpers.golden import golden_vectors, largest_error
from _helpers.small_models import in_consensus, merged_row, quick, task_rows, ties
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.consensus_ties import ConsensusTIES
from lwptv_lightning.rules.ties import TIES


@quick
@given(
    task_rows(),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(1, 3),
    st.sampled_from([0.2, 0.5, 1.0]),
    st.sampled_from(["sum", "max"]),
)
def test_keeps_what_ties_merged_where_it_matters_to_enough_tasks(rows, tall_lambda, min_tasks, density, reduce):
    expected = in_consensus(rows, ties(rows, density, reduce), tall_lambda, min_tasks)
    rule = ConsensusTIES(tall_lambda=tall_lambda, min_tasks=min_tasks, density=density, reduce=reduce)
    assert merged_row(rows, rule) == pytest.approx(expected)


def test_masks_see_the_untrimmed_task_vectors():
    # The trim leaves only the 4 and the 3 of each task; the second task's 2 still matters, |2| > 0.4 * |4 - 2|.
    assert merged_row([[4.0, 3.0, 0.0], [2.0, -9.0, 9.0]], ConsensusTIES(density=0.4)) == [4.0, 0.0, 0.0]


def test_is_ties_or_zero_on_a_real_model():
    vectors = golden_vectors("main")
    ours = merge(vectors, MergeRecipe(rule="consensus_ties"))
    merged = merge(vectors, MergeRecipe(rule=TIES(reduce="sum"), scale=0.3))
    changed = 0
    for name in vectors.names:
        base = vectors.base(name)
        assert torch.logical_or(ours[name] == merged[name], ours[name] == base).all()
        changed += int((ours[name] != base).sum())
    assert 0 < changed < sum(int((merged[name] != vectors.base(name)).sum()) for name in vectors.names)


def test_without_a_threshold_every_weight_of_some_task_stays():
    vectors = golden_vectors("main")
    ours = merge(vectors, MergeRecipe(rule=ConsensusTIES(tall_lambda=0, min_tasks=1)))
    assert largest_error(ours, merge(vectors, MergeRecipe(rule=TIES(reduce="sum"), scale=0.3))) == 0


@pytest.mark.parametrize("arguments", [{"tall_lambda": -0.1}, {"min_tasks": -1}, {"density": 0}])
def test_refuses_values_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ConsensusTIES(**arguments)

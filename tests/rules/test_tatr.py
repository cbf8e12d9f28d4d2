import pytest
import torch
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, quick, task_rows
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.tatr import TATR


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule="tatr"))
    assert largest_error(result, golden_output("tatr.fb_zeroshot_0.99")) < 1e-6


@quick
@given(task_rows(), st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99, 1.0]))
def test_adds_where_conflict_is_strictly_below_the_threshold(rows, quantile):
    columns = list(zip(*rows, strict=True))
    conflicts = [
        sum(abs(a) * abs(b) for i, a in enumerate(column) for j, b in enumerate(column) if i != j) for column in columns
    ]
    threshold = sorted(conflicts)[min(int(len(conflicts) * quantile), len(conflicts) - 1)]
    expected = [sum(c) if conflict < threshold else 0.0 for c, conflict in zip(columns, conflicts, strict=True)]
    assert merged_row(rows, TATR(quantile=quantile)) == pytest.approx(expected)


def test_one_task_keeps_nothing():
    assert merged_row([[1.0, 2.0, -3.0]], "tatr") == [0.0, 0.0, 0.0]


def test_the_trust_region_grows_with_the_quantile():
    vectors = golden_vectors("main")
    before = torch.tensor(0)
    for quantile in (0.0, 0.5, 0.9, 1.0):
        merged = merge(vectors, MergeRecipe(rule=TATR(quantile=quantile)))
        changed = torch.cat([(merged[name] != vectors.base(name)).flatten() for name in vectors.names])
        assert (changed >= before).all()
        before = changed.int()
    assert 0 < before.sum() < before.numel()


@pytest.mark.parametrize("quantile", [-0.1, 1.1, 99])
def test_refuses_what_is_no_fraction(quantile):
    with pytest.raises(ValueError, match="quantile"):
        TATR(quantile=quantile)

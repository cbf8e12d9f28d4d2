import pytest
import torch
from _helpers.golden import golden_base, golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, model, quick, sign, task_rows, vectors_of
from hypothesis import given

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.engine import Stream
from lwptv_lightning.rules.emr import EMR


def test_the_unified_model_equals_the_reference():
    stored = golden_output("emr.official")
    expected = {name: base + stored[f"unified::{name}"] for name, base in golden_base("main").items()}
    assert largest_error(merge(golden_vectors("main"), MergeRecipe(rule="emr")), expected) < 1e-6


@pytest.mark.parametrize("task", [0, 1, 2, 3])
def test_each_tasks_own_model_equals_the_reference(task):
    stored = golden_output("emr.official")
    result = merge(golden_vectors("main"), MergeRecipe(rule="emr"), task=f"task{task}")
    for name, base in golden_base("main").items():
        own = stored[f"unified::{name}"] * stored[f"mask{task}::{name}"] * stored["rescalers"][task]
        assert (result[name] - base - own).abs().max() < 1e-6
        kept = (result[name] != base) == (stored[f"mask{task}::{name}"].bool() & (base + own != base))
        assert kept.all(), name


def test_rescalers_equal_the_reference():
    rescalers = EMR().survey(Stream.of(golden_vectors("main")))
    assert torch.allclose(rescalers.float(), golden_output("emr.official")["rescalers"], atol=1e-6)


def loop_emr(rows):
    """Return the unified row, and each task's own."""
    unified, masks = [], []
    for column in zip(*rows, strict=True):
        elected = sign(sum(column)) if sum(column) > 0 else -1
        agreeing = [sign(value) == elected for value in column]
        unified.append(elected * max((abs(v) for v, a in zip(column, agreeing, strict=True) if a), default=0.0))
        masks.append(agreeing)
    own = []
    for task, row in enumerate(rows):
        masked = [value if mask[task] else 0.0 for value, mask in zip(unified, masks, strict=True)]
        sizes = [tensor.numel() for tensor in model(row).values()]
        numerator = denominator = 0.0
        start = 0
        for size in sizes:
            numerator += sum(map(abs, row[start : start + size])) / size
            denominator += sum(map(abs, masked[start : start + size])) / size
            start += size
        own.append([value * (numerator / denominator if denominator else 1.0) for value in masked])
    return unified, own


@quick
@given(task_rows())
def test_elects_masks_and_rescales(rows):
    unified, own = loop_emr(rows)
    assert merged_row(rows, "emr") == pytest.approx(unified)
    for task, expected in enumerate(own):
        assert merged_row(rows, "emr", task=f"task{task}") == pytest.approx(expected, abs=1e-5)


def test_a_tied_vote_is_negative():
    assert merged_row([[1.0], [-1.0]], "emr") == [-1.0]


@quick
@given(task_rows(max_tasks=1))
def test_one_task_is_left_as_it_is(rows):
    assert merged_row(rows, "emr") == rows[0]
    assert merged_row(rows, "emr", task="task0") == pytest.approx(rows[0])


def test_a_task_that_agrees_nowhere_is_the_base():
    assert merged_row([[-1.0, 0.0], [3.0, 0.0]], "emr", task="task0") == [0.0, 0.0]


def test_refuses_an_unknown_task():
    with pytest.raises(KeyError, match="task"):
        merge(vectors_of([[1.0]]), MergeRecipe(rule="emr"), task="tsk0")

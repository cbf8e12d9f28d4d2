"""A formula notes down what would be computed, and refuses what it could not tell."""

import pytest
import torch

from lwptv_lightning.functional import (
    Formula,
    combine_agreeing,
    drop_at_random_,
    elect_signs,
    keep_consensus,
    keep_largest_,
    keep_middle_,
    sum_tasks,
    trim_,
)

THRESHOLDS = torch.tensor([1.0, 2.0])


def times_two(tau):
    tau *= 2
    return tau


def halved(tau):
    tau /= 2
    return tau


def written(formula):
    """Write a formula as text."""
    given = [written(each) if isinstance(each, Formula) else str(each) for each in formula.arguments]
    return f"{formula.operation}({', '.join(given)})" if given else formula.operation


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (lambda tau: tau * 3, "mul(tau, 3)"),
        (lambda tau: 3 * tau, "mul(tau, 3)"),
        (lambda tau: tau / len(tau), "div(tau, 2)"),
        (lambda tau: tau.abs(), "abs(tau)"),
        (times_two, "mul(tau, 2)"),
        (halved, "div(tau, 2)"),
        (lambda tau: trim_(tau, THRESHOLDS).abs(), f"abs(trim(tau, {THRESHOLDS}))"),
        (sum_tasks, "sum_tasks(tau)"),
        (lambda tau: sum_tasks(tau).sign_().sum().double(), "double(sum(sign(sum_tasks(tau))))"),
        (lambda tau: keep_middle_(tau, 0.5), "keep_middle(tau, 0.5, 0.0)"),
        (lambda tau: keep_middle_(tau, outliers=0.1, density=0.5), "keep_middle(tau, 0.5, 0.1)"),
        (lambda tau: keep_largest_(tau, density=0.5), "keep_largest(tau, 0.5)"),
        (lambda tau: keep_largest_(density=0.5, tau=tau), "keep_largest(tau, 0.5)"),
        (lambda tau: drop_at_random_(tau, 0.5, 7, ["a"], "w"), "drop_at_random(tau, 0.5, 7, ['a'], w, 0)"),
        (lambda tau: keep_consensus(tau, sum_tasks(tau), 0.4, 2), "keep_consensus(tau, sum_tasks(tau), 0.4, 2)"),
        (
            lambda tau: combine_agreeing(tau, elect_signs(tau, tie=1.0), reduce="mean"),
            "combine_agreeing(tau, elect_signs(tau, 1.0), mean)",
        ),
    ],
)
def test_each_operation_is_noted_with_all_of_its_arguments(rule, text):
    assert written(rule(Formula.of(2))) == text


def test_a_formula_is_like_a_flat_stack_in_float32_on_the_cpu():
    tau, merged = Formula.of(3), sum_tasks(Formula.of(3))
    assert (len(tau), tau.dim(), tau.dtype, tau.device) == (3, 2, torch.float32, torch.device("cpu"))
    assert merged.dim() == 1
    with pytest.raises(TypeError, match="how many elements"):
        len(merged)


@pytest.mark.parametrize("in_place", [lambda tau: trim_(tau, THRESHOLDS), times_two, halved])
@pytest.mark.parametrize(
    "later",
    [
        sum_tasks,
        lambda tau: tau.abs(),
        lambda tau: tau.clone(),
        lambda tau: tau * 2,
        lambda tau: tau / 2,
        lambda tau: tau.sum(),
        lambda tau: keep_consensus(tau, sum_tasks(Formula.of(2)), 0.4, 2),
    ],
    ids=["sum_tasks", "abs", "clone", "mul", "div", "sum", "keep_consensus"],
)
def test_what_was_written_to_cannot_be_used_any_more(in_place, later):
    tau = Formula.of(2)
    later(Formula.of(2))
    in_place(tau)
    with pytest.raises(TypeError, match="that was written to"):
        later(tau)


def test_a_copy_of_it_can():
    tau = Formula.of(2)
    trimmed = trim_(tau.clone(), THRESHOLDS)
    assert (written(tau * 2), trimmed.operation) == ("mul(tau, 2)", "trim")


@pytest.mark.parametrize(
    "rule",
    [
        list,
        lambda tau: tau[0],
        lambda tau: tau + tau,
        lambda tau: -tau,
        lambda tau: tau.median(),
        lambda tau: tau.shape,
        lambda tau: tau == 0,
        lambda tau: tau != tau.abs(),
        bool,
        hash,
        lambda tau: torch.relu(tau),
        lambda tau: torch.where(tau > 0, tau, 0),
        lambda tau: [row for row in tau],  # noqa: C416
    ],
)
def test_what_it_cannot_note_raises(rule):
    with pytest.raises((TypeError, AttributeError)):
        rule(Formula.of(2))


def test_tensors_are_computed_with_as_ever():
    tau = torch.tensor([[1.0, -3.0], [4.0, 2.0]])
    assert torch.equal(sum_tasks(trim_(tau, THRESHOLDS)), torch.tensor([5.0, -1.0]))
    assert torch.equal(sum_tasks(tau=trim_(thresholds=THRESHOLDS, tau=tau)), torch.tensor([5.0, -1.0]))
    assert torch.equal(drop_at_random_(tau.clone(), 1, 7, ["a", "b"], "w"), tau)

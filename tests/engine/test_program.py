"""Which formulas kernels compute, read off rules, and which they leave to torch."""

import pytest
import torch

from lwptv_lightning.engine import Program, merging_program
from lwptv_lightning.engine.program import (
    LARGEST_OF_AGREEING,
    MEAN_OF_AGREEING,
    START,
    SUM,
    SUM_OF_AGREEING,
    Above,
    Between,
    Drop,
    magnitudes_program,
    voting_program,
)
from lwptv_lightning.functional import (
    combine_agreeing,
    drop_at_random_,
    elect_signs,
    keep_consensus,
    keep_largest_,
    keep_middle_,
    per_row,
    sum_tasks,
    trim_,
)

THRESHOLDS = torch.tensor([1.0, 2.0])


def drop(tau, density=0.5, start=START):
    return drop_at_random_(tau, density, 3, ("a", "b"), "w", start)


def steps(program):
    """Return what a program does, without what it does not do."""
    weights = None if program.weights is None else (program.weights.values.tolist(), program.weights.divides)
    limits = program.limits.tolist() if isinstance(program.limits, torch.Tensor) else program.limits
    found = {
        "drop": program.drop,
        "limits": limits,
        "weights": weights,
        "reduction": program.reduction or None,
        "tie": program.tie or None,
        "consensus": program.consensus,
    }
    return {name: value for name, value in found.items() if value is not None}


def agreeing(tau, reduce="mean", tie=-1.0):
    return combine_agreeing(tau, elect_signs(tau, tie), reduce)


DROPPED = Drop(0.5, 3, ("a", "b"), "w")


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (sum_tasks, {}),
        (lambda tau: sum_tasks(tau / 2), {"weights": ([2.0, 2.0], True)}),
        (lambda tau: sum_tasks(0.5 * tau), {"weights": ([0.5, 0.5], False)}),
        (
            lambda tau: sum_tasks(tau * per_row(torch.tensor([1.0, 0.1], dtype=torch.float64), tau)),
            {"weights": ([1.0, float(torch.tensor(0.1))], False)},
        ),
        (lambda tau: sum_tasks(trim_(tau, THRESHOLDS)), {"limits": [1.0, 2.0]}),
        (lambda tau: sum_tasks(keep_largest_(tau, 0.2)), {"limits": Above(0.2)}),
        (lambda tau: sum_tasks(keep_middle_(tau, 0.2, 0.1)), {"limits": Between(0.2, 0.1)}),
        (lambda tau: sum_tasks(drop(tau)), {"drop": DROPPED}),
        (lambda tau: sum_tasks(drop(tau, 1.0)), {}),
        (lambda tau: sum_tasks(drop(tau, 1 - 1e-11)), {}),
        (
            lambda tau: sum_tasks(trim_(drop(tau), THRESHOLDS) * 3),
            {"drop": DROPPED, "limits": [1.0, 2.0], "weights": ([3.0, 3.0], False)},
        ),
        (agreeing, {"reduction": MEAN_OF_AGREEING, "tie": -1.0}),
        (lambda tau: agreeing(tau, "sum", 0), {"reduction": SUM_OF_AGREEING}),
        (
            lambda tau: agreeing(trim_(tau, THRESHOLDS), "max", 1.0),
            {"limits": [1.0, 2.0], "reduction": LARGEST_OF_AGREEING, "tie": 1.0},
        ),
        (lambda tau: keep_consensus(tau, sum_tasks(tau), 0.4, 2), {"consensus": (0.4, 2.0)}),
        (
            lambda tau: keep_consensus(tau, agreeing(trim_(tau.clone(), THRESHOLDS)), 0.4, 2),
            {"limits": [1.0, 2.0], "reduction": MEAN_OF_AGREEING, "tie": -1.0, "consensus": (0.4, 2.0)},
        ),
    ],
)
def test_a_formula_is_read_as_the_steps_of_a_kernel(formula, expected):
    program = merging_program(formula, 2)
    assert program.tasks == 2
    assert steps(program) == expected
    assert SUM == 0


def fails(tau):
    raise OSError


@pytest.mark.parametrize(
    "formula",
    [
        lambda tau: tau,
        lambda tau: tau.abs(),
        lambda tau: None,
        lambda tau: sum_tasks(tau).sign_(),
        lambda tau: sum_tasks(tau) * 2,
        lambda tau: sum_tasks(tau * 2 * 3),
        lambda tau: sum_tasks(trim_(tau * 2, THRESHOLDS)),
        lambda tau: sum_tasks(drop(trim_(tau, THRESHOLDS))),
        lambda tau: sum_tasks(drop(drop(tau))),
        lambda tau: sum_tasks(trim_(keep_middle_(tau, 0.5), THRESHOLDS)),
        lambda tau: sum_tasks(drop(tau, torch.rand(2, 4))),
        lambda tau: sum_tasks(drop(tau, start=8)),
        lambda tau: sum_tasks(tau * (START + 1)),
        lambda tau: sum_tasks(tau * torch.ones(2, 4)),
        lambda tau: sum_tasks(tau * torch.ones(3, 1)),
        lambda tau: sum_tasks(tau * torch.ones(2, 1, dtype=torch.float64)),
        lambda tau: sum_tasks(tau * torch.ones(2, 1, requires_grad=True)),
        # One for all tasks is broadcast.
        lambda tau: sum_tasks(trim_(tau, torch.ones(1))),
        lambda tau: sum_tasks(trim_(tau, torch.tensor(1.0))),
        lambda tau: sum_tasks(drop_at_random_(tau, 0.5, 3, ("a",), "w", START)),
        # What is out of its range, which torch refuses or does in its own way.
        lambda tau: sum_tasks(keep_middle_(tau, 1.5)),
        lambda tau: sum_tasks(keep_middle_(tau, 0.5, -0.1)),
        lambda tau: sum_tasks(keep_largest_(tau, -0.5)),
        lambda tau: sum_tasks(keep_largest_(tau, float("nan"))),
        lambda tau: keep_consensus(tau, sum_tasks(tau), -0.4, 2),
        lambda tau: sum_tasks(tau / torch.ones(2, 1)),
        lambda tau: sum_tasks(tau.abs()),
        lambda tau: combine_agreeing(tau, elect_signs(tau * 2, 1.0), "mean"),
        lambda tau: combine_agreeing(tau, sum_tasks(tau).sign_(), "mean"),
        lambda tau: combine_agreeing(tau, elect_signs(tau, 1.0), "median"),
        lambda tau: keep_consensus(tau * 2, sum_tasks(tau), 0.4, 2),
        # A second use of what was overwritten is not what the formula says.
        lambda tau: keep_consensus(tau, sum_tasks(trim_(tau, THRESHOLDS)), 0.4, 2),
        lambda tau: tau.median(),
        lambda tau: sum_tasks(tau) if tau else sum_tasks(tau * 2),
        lambda tau: sum_tasks(tau * (tau == 0)),
        lambda tau: sum_tasks(tau * (sum_tasks(tau.clone()) != 0)),
        lambda tau: sum(row for row in tau),
        lambda tau: torch.sum(tau, 0),
        fails,
    ],
)
def test_what_no_kernel_computes_has_no_program(formula):
    assert merging_program(formula, 2) is None


def test_searches_and_votes_have_programs_of_their_own():
    assert steps(magnitudes_program(lambda tau: tau.abs(), 2)) == {}
    assert steps(magnitudes_program(lambda tau: drop(tau).abs(), 2)) == {"drop": DROPPED}
    assert magnitudes_program(lambda tau: tau, 2) is None
    for values in (lambda tau: tau * 2, lambda tau: trim_(tau, THRESHOLDS), lambda tau: keep_largest_(tau, 0.5)):
        assert magnitudes_program(lambda tau, values=values: values(tau).abs(), 2) is None

    def vote(tau):
        return sum_tasks(trim_(tau, THRESHOLDS)).sign_().sum().double()

    assert steps(voting_program(vote, 2)) == {"limits": [1.0, 2.0]}
    assert voting_program(lambda tau: sum_tasks(tau).sum().double(), 2) is None
    assert voting_program(lambda tau: vote(tau / 3), 2) is None
    for rows in (lambda tau: trim_(tau, THRESHOLDS) * 2, lambda tau: keep_largest_(tau, 0.5)):
        assert voting_program(lambda tau, rows=rows: sum_tasks(rows(tau)).sign_().sum().double(), 2) is None


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_factors_are_float32_on_the_cpu_whatever_is_the_default(default):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            factors = merging_program(lambda tau: sum_tasks(tau * 0.1), 2).weights.values
    finally:
        torch.set_default_dtype(before)
    assert factors.dtype == torch.float32
    assert factors.tolist() == [float(torch.tensor(0.1))] * 2
    assert voting_program(lambda tau: tau.abs().sum().double(), 2) is None


def test_ranks_of_what_is_kept_are_those_of_the_trims():
    assert Above(0.3).ranks(10) == (7,)
    assert Above(1.0).ranks(10) == (0,)
    assert Between(0.5, 0.25).ranks(4) == (1, 3)
    assert Between(0.9, 0.5).ranks(10) == (0, 9)  # fewer outliers than asked for
    assert Between(0.5, 0.0).ranks(0) == (0, 0)
    assert Program(2).limits is None


def test_a_sum_of_rows_takes_a_number_for_each_and_nothing_else_does():
    numbers = torch.tensor([0.5, 2.0], dtype=torch.float64)
    weighted = merging_program(lambda tau: sum_tasks(drop(tau)), 2).weighted(numbers)
    assert steps(weighted) == steps(
        merging_program(lambda tau: sum_tasks(drop(tau) * per_row(numbers.float(), tau)), 2)
    )
    assert merging_program(lambda tau: sum_tasks(tau / 2), 2).weighted(numbers) is None
    assert merging_program(lambda tau: combine_agreeing(tau, elect_signs(tau, 1.0), "sum"), 2).weighted(numbers) is None

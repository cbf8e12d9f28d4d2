import pytest
import torch

from lwptv_lightning.search import SweepResult


def test_the_bootstrap_interval_holds_the_difference_and_narrows_with_samples():
    torch.manual_seed(0)

    def result(size):
        outcomes = torch.stack([torch.rand(size) < 0.8, torch.rand(size) < 0.6])
        return SweepResult(("good", "bad"), {"id/a": outcomes, "id/b": outcomes}, {})

    small, large = (result(size).difference("good", "bad", "id") for size in (50, 5000))
    for difference in (small, large):
        assert difference.low < difference.value < difference.high
    assert large.high - large.low < (small.high - small.low) / 5
    assert large.value == pytest.approx(0.2, abs=0.03)


def test_the_bootstrap_interval_is_that_of_the_normal_approximation():
    torch.manual_seed(0)
    outcomes = torch.rand(2, 2000) < 0.5
    difference = SweepResult(("x", "y"), {"ood/a": outcomes}, {}).difference("x", "y", "ood", draws=20000)
    spread = float((outcomes[0].double() - outcomes[1].double()).std()) / 2000**0.5
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * spread, rel=0.05)


def test_equal_candidates_differ_by_nothing():
    outcomes = (torch.rand(1, 40) < 0.5).expand(2, -1)
    difference = SweepResult(("x", "y"), {"id/a": outcomes}, {}).difference("x", "y", "id")
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)

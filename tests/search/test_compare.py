from fractions import Fraction

import pytest
import torch

from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import SweepResult
from lwptv_lightning.search.compare import paired_difference, weights_over


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


LOADERS = ("id/a", "ood/near/b", "ood/near/c", "ood/far/d")


def of_loaders(seed=0, candidates=3):
    generator = torch.Generator().manual_seed(seed)
    sizes = dict(zip(LOADERS, (60, 40, 20, 50), strict=True))
    outcomes = {name: torch.rand(candidates, size, generator=generator) < 0.6 for name, size in sizes.items()}
    return SweepResult(tuple("xyz"[:candidates]), outcomes, {})


@pytest.mark.parametrize(
    ("domain", "weights"),
    [
        ("id", (1, 0, 0, 0)),
        ("ood", (0, 1 / 3, 1 / 3, 1 / 3)),
        ("ood/near", (0, 1 / 2, 1 / 2, 0)),
        ("ood/near/b", (0, 1, 0, 0)),
        (("id", "ood"), (1 / 2, 1 / 6, 1 / 6, 1 / 6)),
        (["id", "ood/near", "ood/far"], (1 / 3, 1 / 6, 1 / 6, 1 / 3)),
    ],
)
def test_a_domain_may_be_a_group_a_set_or_several(domain, weights):
    result = of_loaders()
    found = result.difference("x", "y", domain, draws=4000)
    accuracy = [result.outcomes[name].double().mean(1) for name in LOADERS]
    expected = sum(weight * (each[0] - each[1]) for weight, each in zip(weights, accuracy, strict=True))
    assert found.value == pytest.approx(float(expected), abs=1e-12)
    assert found.low <= found.value <= found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.standard_error, rel=0.1)
    kept = {name: weight for name, weight in zip(LOADERS, weights, strict=True) if weight}
    assert {name: float(weight) for name, weight in weights_over(LOADERS, domain).items()} == pytest.approx(kept)


def test_a_group_is_no_other_one_that_begins_like_it():
    assert list(weights_over(["ood/near/a", "ood/nearest/a"], "ood/near")) == ["ood/near/a"]


def test_a_set_is_not_the_part_of_a_longer_name():
    loaders = ["ood/near/a", "ood/near/a/b"]
    assert list(weights_over(loaders, "ood/near/a")) == ["ood/near/a"]
    assert list(weights_over(loaders, "ood/near")) == loaders


@pytest.mark.parametrize(("domain", "nearest"), [("ood/nea", "ood/near"), ("id/avg", "id/a"), (("id", "odd"), "ood")])
def test_a_domain_without_sets_is_refused(domain, nearest):
    with pytest.raises(UnknownNameError, match=f"domain .*Did you mean '{nearest}'"):
        of_loaders().difference("x", "y", domain)
    with pytest.raises(ValueError, match="domain is empty"):
        of_loaders().difference("x", "y", ())


def test_the_standard_error_is_that_of_a_plain_bootstrap():
    result = of_loaders(seed=3)
    generator = torch.Generator().manual_seed(1)
    sets = [outcomes[0].double() - outcomes[1].double() for name, outcomes in result.outcomes.items() if name != "id/a"]
    drawn = [
        sum(each[torch.randint(len(each), (len(each),), generator=generator)].mean() for each in sets) / 3
        for _ in range(4000)
    ]
    difference = result.difference("x", "y", "ood")
    assert difference.standard_error == pytest.approx(float(torch.stack(drawn).std()), rel=0.05)
    exact = sum(float(each.var()) / len(each) for each in sets) ** 0.5 / 3
    assert difference.standard_error == pytest.approx(exact, rel=1e-12)


def test_a_single_sample_has_no_standard_error_and_none_is_refused():
    single = SweepResult(("x", "y"), {"id/a": torch.tensor([[True], [False]])}, {}).difference("x", "y", "id")
    assert single.value == 1
    assert single.standard_error != single.standard_error
    with pytest.raises(ValueError, match="'id/a' has no sample"):
        paired_difference({"id/a": torch.zeros(0)}, {"id/a": torch.zeros(0)}, {"id/a": Fraction(1)})


def test_draws_in_parts_are_the_same(monkeypatch):
    whole = of_loaders().difference("x", "y", ("id", "ood"))
    monkeypatch.setattr("lwptv_lightning.search.compare._DRAWN_AT_ONCE", 70)
    assert of_loaders().difference("x", "y", ("id", "ood")) == whole


def test_there_is_a_draw():
    with pytest.raises(ValueError, match="draws"):
        of_loaders().difference("x", "y", "id", draws=0)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_coverage_is_a_fraction(confidence):
    with pytest.raises(ValueError, match=r"confidence must be a number in \(0, 1\)"):
        of_loaders().difference("x", "y", "id", confidence=confidence)

import re

import pytest

from lwptv_lightning.search import Difference
from lwptv_lightning.search.recommendation import Evidence, recommend, verdict

GAIN, LOSS, NEITHER = Difference(0.02, 0.01, 0.03), Difference(-0.02, -0.03, -0.01), Difference(0.01, -0.01, 0.03)


def said(others, **changes):
    usual = {
        "name": "ties x 0.5, mean_abs 0.3",
        "how": "one_standard_error",
        "candidates": 173,
        "figures": {"id/avg": 0.8, "ood/avg": 0.7},
        "others": others,
        "prunes": True,
        "fewest": (300, 200),
    }
    found = recommend(Evidence(**(usual | changes)))
    assert isinstance(found, tuple)
    for sentence in found:
        assert re.fullmatch(r"[A-Z].*\.", sentence)
        assert ". " not in sentence  # one sentence
    return found


def both(id_, ood):
    return {"id": id_, "ood": ood}


@pytest.mark.parametrize(
    ("against", "advice"),
    [
        (both(GAIN, NEITHER), "Take ties x 0.5, mean_abs 0.3, which"),
        (both(GAIN, GAIN), "Take ties x 0.5, mean_abs 0.3, which"),
        (both(NEITHER, NEITHER), "Take ties x 0.5, mean_abs 0.3 or task arithmetic x 0.3, which cannot be told apart"),
        (both(LOSS, NEITHER), "Take task arithmetic x 0.3 rather than ties x 0.5, mean_abs 0.3"),
        (both(GAIN, LOSS), "Take ties x 0.5, mean_abs 0.3 only where ID accuracy counts more than OOD accuracy"),
        (both(LOSS, GAIN), "Take ties x 0.5, mean_abs 0.3 only where OOD accuracy counts more than ID accuracy"),
    ],
)
def test_the_advice_is_no_more_than_the_intervals_say(against, advice):
    first, _ = said({"reference": against})
    assert first.startswith(advice)
    assert "80.0 % ID and 70.0 % OOD" in first
    assert "one_standard_error chose among 173 candidates" in first
    for difference in against.values():
        assert str(difference) in first
    if NEITHER in against.values():
        assert "no difference that can be told from zero" in first


def test_what_is_chosen_may_be_the_reference():
    first, _ = said({}, name="task_arithmetic x 0.3", prunes=False)
    assert first.startswith("Stay with task_arithmetic x 0.3, which")


@pytest.mark.parametrize(
    ("difference", "told"),
    [
        (both(GAIN, NEITHER), "pruning is a gain in ID (+2.0 [+1.0, +3.0]) and no difference that can be told from"),
        (both(NEITHER, NEITHER), "pruning is not shown to be worth it"),
        (both(LOSS, NEITHER), "pruning is a loss in ID (-2.0"),
        (both(GAIN, LOSS), "pruning is a gain in ID"),
    ],
)
def test_what_pruning_is_worth_is_told_by_both_controls(difference, told):
    _, second = said({"unpruned": difference, "masks": both(NEITHER, NEITHER)})
    assert told in second
    assert "and is not shown to be worth it (ID +1.0 [-1.0, +3.0], OOD +1.0 [-1.0, +3.0]) against random" in second


def test_an_end_that_is_told_as_zero_is_no_gain_and_no_loss():
    barely = both(Difference(0.02, 0.0004, 0.03), Difference(-0.02, -0.03, -1e-9))
    assert verdict(barely).startswith("no difference that can be told from zero in ID (+2.0 [+0.0, +3.0]) and in OOD")
    first, second = said({"reference": barely, "unpruned": barely})
    assert "cannot be told apart" in first
    assert "is not shown to be worth it" in second


def test_a_loss_against_the_base_is_told():
    _, second = said({"base": both(GAIN, LOSS)})
    assert "against the base it is a gain in ID (+2.0 [+1.0, +3.0]) and a loss in OOD (-2.0 [-3.0, -1.0])" in second


def test_what_weakens_the_figures_is_told():
    _, second = said({}, fewest=(20, 12), halved=True, figures={"id/avg": 0.8})
    assert "samples are few, 12 of the smallest validation and 20 of the smallest test set" in second
    assert "halves of the ID sets" in second
    assert "nothing can be said of other domains" in second
    assert "what its pruning is worth was not measured" in second.lower()
    _, second = said({"unpruned": both(GAIN, GAIN)})
    assert "samples are few" not in second.lower()
    assert "halves" not in second


def test_verdicts_group_what_is_alike():
    assert verdict(both(GAIN, GAIN)) == "a gain in ID (+2.0 [+1.0, +3.0]) and in OOD (+2.0 [+1.0, +3.0])"


def test_controls_of_learnt_coefficients_tell_what_these_are_worth():
    _, second = said({"unpruned": both(GAIN, NEITHER)}, learnt=True)
    assert second.startswith("What it learnt is a gain in ID")


def test_groups_that_lose_are_told_though_all_sets_together_do_not():
    others = {"base": {**both(GAIN, GAIN), "ood/near": GAIN, "ood/far": LOSS}}
    first, second = said({"reference": {**both(GAIN, NEITHER), "ood/far": LOSS}, **others})
    assert first.startswith("Take ties")
    assert f"a loss in OOD far ({LOSS})" in first
    assert f"a gain in ID ({GAIN}) and in OOD ({GAIN}) and a loss in OOD far ({LOSS})" in second
    assert "near" not in second

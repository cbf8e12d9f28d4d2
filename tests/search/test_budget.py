import pytest

from lwptv_lightning.search.budget import Budget


@pytest.mark.parametrize(
    ("given", "evaluations", "seconds"),
    [
        (200, 200, None),
        ("200", 200, None),
        (" 7 ", 7, None),
        ("90s", None, 90),
        ("10min", None, 600),
        ("10 MIN", None, 600),
        ("2h", None, 7200),
        ("1h 30min", None, 5400),
        ("1.5h", None, 5400),
        ("1d", None, 86400),
    ],
)
def test_evaluations_and_times_are_read(given, evaluations, seconds):
    assert Budget.of(given) == Budget(evaluations, seconds)
    assert Budget.of(Budget.of(given)) == Budget(evaluations, seconds)


@pytest.mark.parametrize("given", ["", "x", "min", "-3", "1.5", None, 1.5, True, [3], "10 20min", "10min x", "1e3"])
def test_what_is_neither_is_refused_with_examples(given):
    with pytest.raises(ValueError, match="budget must be a number of evaluations such as 200, or a time such as 90s"):
        Budget.of(given)


@pytest.mark.parametrize("given", [0, -3, "0"])
def test_no_evaluation_is_no_budget(given):
    with pytest.raises(ValueError, match="budget must be at least 1"):
        Budget.of(given)


def test_no_time_is_no_budget_and_a_unit_has_a_nearest():
    with pytest.raises(ValueError, match="'0s' is nothing"):
        Budget.of("0s")
    with pytest.raises(ValueError, match="not '10mins'. Did you mean 'min'"):
        Budget.of("10mins")


def test_a_budget_tells_itself():
    assert [str(Budget.of(each)) for each in (1, 200, "90s", "45s", "2h")] == [
        "1 evaluation",
        "200 evaluations",
        "1.5 min",
        "45 s",
        "2 h",
    ]

import pytest

from lwptv_lightning.search.halving import plan_rungs


def total(rungs, cost=lambda part: part):
    return sum(rung.candidates * cost(rung.part) for rung in rungs)


@pytest.mark.parametrize("candidates", [1, 2, 7, 60, 173, 900])
@pytest.mark.parametrize("evaluations", [3, 10, 57.5, 200])
def test_plans_keep_to_the_budget_and_end_on_all_samples(candidates, evaluations):
    rungs = plan_rungs(candidates, evaluations, lambda part: part)
    assert total(rungs) <= evaluations + 1e-9
    assert rungs[-1].part == 1
    assert [rung.part for rung in rungs] == sorted({rung.part for rung in rungs})
    counts = [rung.candidates for rung in rungs]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= 1
    assert counts[0] <= candidates


def test_what_is_left_goes_to_the_last_rung_and_no_further():
    assert plan_rungs(90, 40, lambda part: part)[-1].candidates == 20
    assert plan_rungs(9, 1000, lambda part: part)[-1].candidates == 9


def test_equal_shares_are_no_rungs_of_their_own():
    def cost(part):
        return max(part, 0.2)  # sets are small

    rungs = plan_rungs(83, 30, cost)
    assert len({cost(rung.part) for rung in rungs}) == len(rungs)
    assert total(rungs, cost) <= 30


def test_too_small_a_budget_is_refused():
    with pytest.raises(ValueError, match="a budget of 0.5 evaluations is too small for successive halving"):
        plan_rungs(10, 0.5, lambda part: part)

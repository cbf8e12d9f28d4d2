import pytest
import torch
from _helpers.pretended import Pretended, pool_of

from lwptv_lightning.search import SweepResult
from lwptv_lightning.search.trials import joined


def test_a_candidate_is_evaluated_once_on_a_share_and_costs_its_part():
    made = Pretended(pool_of(4), 30)
    names = list(made.pool)[:6]
    assert made.trials.run(names) == names
    assert made.trials.run([*names, names[0]]) == names
    assert made.trials.spent == 6
    assert made.trials.run(names[:3], 1 / 3) == names[:3]
    assert made.trials.spent == pytest.approx(7)
    assert made.trials.left == pytest.approx(23)
    assert made.trials.tried == tuple(names)
    assert made.trials.known(1 / 9) == ()
    assert [len(names) for names, _ in made.calls] == [6, 3]  # all together, to share their work


def test_a_time_ends_between_candidates_that_are_evaluated_together():
    made = Pretended(pool_of(8), "10s")
    done = made.trials.run(made.pool)
    assert [len(names) for names, _ in made.calls] == [4, 4, 4]
    assert len(done) == 12
    assert made.trials.pace == 1
    assert made.trials.left == 0
    assert len(made.trials.run(made.pool)) == 12
    assert len(made.trials.run(list(made.pool)[:14], always=True)) == 14


def test_time_is_left_for_what_follows():
    made = Pretended(pool_of(8), "10s")
    made.trials.run(list(made.pool)[:4])
    assert len(made.trials.run(made.pool, reserve=5)) == 8


def test_what_the_first_process_says_counts():
    said = []

    def agreed(action):
        said.append(action())
        return -1.0

    made = Pretended(pool_of(8), "10s", agreed=agreed)
    assert made.trials.run(made.pool) == []
    assert said == [10.0]


def test_ranks_are_by_accuracy_then_by_nearness():
    made = Pretended(pool_of(2), 30)
    right = torch.tensor([[True, False], [True, True], [False, True]])
    made.trials._found[1.0] = SweepResult(tuple("abc"), {"id/a": right}, {}, {"a": 2.0, "b": 3.0, "c": 1.0})
    assert made.trials.ranked("abc", 1.0) == ["b", "c", "a"]


def test_twins_come_first_and_once():
    made = Pretended(pool_of(3), 30)
    order = made.trials.with_twins(["ties 2 pruned", "ties 1", "ties 1 pruned"])
    assert order == ["ties 2", "ties 2 pruned", "ties 1", "ties 1 pruned"]


def test_results_of_the_same_samples_are_joined():
    one = SweepResult(("a",), {"id/x": torch.tensor([[True, False]])}, {"a": 1.0}, {"a": 0.5})
    two = SweepResult(("b",), {"id/x": torch.tensor([[True, True]])}, {"b": 2.0}, {})
    both = joined([one, two])
    assert both.names == ("a", "b")
    assert both.outcomes["id/x"].tolist() == [[True, False], [True, True]]
    assert (both.seconds, both.changes) == ({"a": 1.0, "b": 2.0}, {"a": 0.5})

import importlib.util

import pytest
from _helpers.pretended import Pretended, pool_of
from torch.utils.data import DataLoader, IterableDataset

from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import strategies
from lwptv_lightning.search.portions import Shares
from lwptv_lightning.search.space import REFERENCE
from lwptv_lightning.search.strategies import require_strategy, search


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(5))


def run(strategy, pool, budget, seed=0, **options):
    made = Pretended(pool, budget, **options)
    require_strategy(strategy, made.trials)
    return made, search(strategy, made.trials, seed)


@pytest.mark.parametrize("strategy", ["auto", "grid"])
def test_the_whole_grid_where_the_budget_holds_it(strategy):
    pool = pool_of(8)
    made, told = run(strategy, pool, len(pool))
    assert sorted(made.evaluated) == sorted(pool)
    assert told == f"{len(pool)} of {len(pool)} candidates were evaluated on all validation samples: the whole grid."


def test_halving_where_it_does_not():
    pool = pool_of(20)
    made, told = run("auto", pool, 40)
    assert "successive halving" in told
    assert made.trials.spent <= 40
    assert made.evaluated[0] == REFERENCE
    assert len(made.trials.tried) == len(pool)
    assert "dare 19 pruned" in made.evaluated  # the best one
    assert "dare 19" in made.evaluated  # and its twin
    parts = [part for _, part in made.calls[1:]]
    assert parts == sorted(parts)
    assert parts[-1] == 1


def test_halving_takes_some_candidates_where_the_budget_is_small():
    pool = pool_of(50)
    made, _ = run("halving", pool, 10)
    assert made.trials.spent <= 10
    assert 10 < len(made.trials.tried) < len(pool)
    again, _ = run("halving", pool, 10)
    assert again.calls == made.calls
    other, _ = run("halving", pool, 10, seed=1)
    assert other.calls != made.calls


def test_a_random_order_is_seeded_keeps_to_the_budget_and_has_twins():
    pool = pool_of(20)
    made, told = run("random", pool, 13)
    assert len(made.evaluated) == 13
    assert made.evaluated[0] == REFERENCE
    for place, name in enumerate(made.evaluated):
        assert pool[name].twin is None or pool[name].twin in made.evaluated[:place]
    assert run("random", pool, 13)[0].evaluated == made.evaluated
    assert run("random", pool, 13, seed=5)[0].evaluated != made.evaluated
    assert "random order (seed 0)" in told


def test_the_smallest_budget_is_the_reference():
    made, _ = run("auto", pool_of(20), 1)
    assert made.evaluated == [REFERENCE]


@pytest.mark.parametrize("strategy", ["auto", "grid", "random", "halving"])
@pytest.mark.parametrize("seconds", ["0.5s", "7s", "25s", "1h"])
def test_a_time_ends_clean_and_soon(strategy, seconds):
    pool = pool_of(20)
    made, _ = run(strategy, pool, seconds)
    assert made.evaluated[0] == REFERENCE
    # What is being evaluated is finished, and in halving the best so far, four at most.
    assert made.now <= made.trials.budget.seconds + 2 * made.trials.at_once
    if seconds == "1h":
        assert sorted(made.evaluated) == sorted(pool) or strategy == "halving"


@pytest.mark.parametrize(
    ("count", "seconds", "evaluated"),
    [(0, "1h", 1), (1, "1h", 5), (20, "4.5s", 5), (20, "5.2s", 5)],
    ids=["the reference alone", "all at once", "too late", "too late for any rung"],
)
def test_halving_by_time_that_finds_nothing_to_halve_keeps_what_was_evaluated(count, seconds, evaluated):
    made, told = run("halving", pool_of(count), seconds)
    assert len(made.evaluated) >= evaluated
    assert made.trials.whole.names == tuple(made.evaluated)
    assert told.startswith(f"{len(made.evaluated)} of {len(made.pool)} candidates were evaluated on all")


def test_halving_by_time_evaluates_the_best_so_far_on_all_samples():
    made, told = run("auto", pool_of(60), "30s")
    assert "successive halving" in told
    best = made.trials.ranked(made.trials.known(), 1.0)[0]
    assert list(made.pool).index(best) > len(made.pool) / 2


def test_a_grid_that_does_not_fit_is_refused_before_it_begins():
    made = Pretended(pool_of(20), 40)
    with pytest.raises(
        ValueError, match="evaluates all 81 candidates, and the budget is 40 evaluations: give a budget of"
    ):
        require_strategy("grid", made.trials)
    assert made.calls == []


def test_samples_that_cannot_be_divided_are_named_and_auto_does_without():
    made = Pretended(pool_of(20), 40)
    whole = made.trials.shares
    made.trials.shares = Shares({"id/a": DataLoader(Stream(), batch_size=2)})
    with pytest.raises(ValueError, match="loader 'id/a' cannot be divided"):
        require_strategy("halving", made.trials)
    require_strategy("auto", made.trials)
    made.trials.shares.loaders, made.trials.shares.cost = whole.loaders, whole.cost
    assert "a random order" in search("auto", made.trials, 0)


def test_an_unknown_strategy_has_its_nearest():
    with pytest.raises(UnknownNameError, match="unknown strategy 'halvin'. Did you mean 'halving'"):
        require_strategy("halvin", Pretended(pool_of(2), 40).trials)


def test_optuna_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(strategies, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs optuna, which is not installed: pip install 'lwptv-lightning\[tune\]'"
    ):
        require_strategy("optuna", Pretended(pool_of(2), 40).trials)


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is not installed")
@pytest.mark.parametrize("budget", [25, "25s", 200])
def test_optuna_finds_good_candidates_within_the_budget(budget):
    pool = pool_of(20)
    made, told = run("optuna", pool, budget)
    assert "optuna" in told
    assert len(made.evaluated) == len(set(made.evaluated))
    assert made.evaluated[0] == REFERENCE
    if budget == 200:
        assert sorted(made.evaluated) == sorted(pool)
    else:
        assert 20 <= len(made.evaluated) <= 25 + made.trials.at_once
        assert run("optuna", pool, budget)[0].evaluated == made.evaluated

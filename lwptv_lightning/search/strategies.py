"""In which order a search goes through its space, and what it leaves out."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lwptv_lightning.registry import require_known
from lwptv_lightning.search.halving import plan_rungs
from lwptv_lightning.search.space import REFERENCE
from lwptv_lightning.search.trials import Trials

_ASKED_AT_ONCE = 8
"""Candidates that optuna proposes before it learns what the last ones were worth."""


def require_strategy(name: str, trials: Trials) -> None:
    """Raise before anything runs where a strategy does not suit the space, the budget or the samples.

    Raises:
        UnknownNameError: There is no such strategy.
        ModuleNotFoundError: It needs a library that is not installed.
        ValueError: The budget does not hold the whole grid, or samples cannot be divided.
    """
    require_known("strategy", name, STRATEGIES)
    count, most = len(trials.pool), trials.budget.evaluations
    if name == "grid" and most is not None and most < count:
        raise ValueError(
            f"strategy 'grid' evaluates all {count} candidates, and the budget is {trials.budget}: give a budget of "
            f"{count}, a smaller space, or the strategy 'halving' or 'random'."
        )
    if name == "halving":
        if undivided := trials.shares.undivided:
            raise ValueError(
                f"strategy 'halving' takes shares of the validation samples, and loader {undivided[0]!r} cannot be "
                "divided: give a DataLoader of a data set that has a length, or the strategy 'random'."
            )
        if most is not None and most < count:
            plan_rungs(count - 1, most - 1, trials.shares.cost)
    if name == "optuna" and find_spec("optuna") is None:
        raise ModuleNotFoundError(
            "strategy 'optuna' needs optuna, which is not installed: pip install 'lwptv-lightning[tune]', or take the "
            "strategy 'auto'."
        )


def search(name: str, trials: Trials, seed: int) -> str:
    """Evaluate candidates by a strategy, within the budget, and return in words what was done."""
    trials.run([REFERENCE])
    return STRATEGIES[name](trials, seed)


def _auto(trials: Trials, seed: int) -> str:
    if trials.budget.seconds is not None:  # what the time holds is known after the first ones
        trials.run(list(trials.pool)[: trials.at_once])
    if trials.left >= len(trials.pool) - len(trials.known()):
        return _grid(trials, seed)
    if trials.shares.undivided:
        return _random(trials, seed)
    try:
        return _halving(trials, seed)
    except ValueError:  # too small a budget for it
        return _random(trials, seed)


def _grid(trials: Trials, seed: int) -> str:
    done = trials.run(trials.pool)
    return _told("the whole grid" if len(done) == len(trials.pool) else "the grid in its order", trials)


def _random(trials: Trials, seed: int) -> str:
    order = trials.with_twins([REFERENCE, *_shuffled(trials, seed)])
    if trials.budget.evaluations is not None:
        order = order[: trials.budget.evaluations]
    trials.run(order)
    return _told(f"a random order (seed {seed}), before each recipe that prunes its twin that does not", trials)


def _halving(trials: Trials, seed: int) -> str:
    if trials.budget.seconds is not None and trials.pace is None:  # what the time holds is known after the first ones
        trials.run(list(trials.pool)[: trials.at_once])
    rest = [name for name in trials.pool if name not in trials.known()]
    if not rest:
        return _told("the whole grid", trials)
    evaluations = min(trials.left, 10.0 * len(rest))
    try:
        *rungs, last = plan_rungs(len(rest), evaluations, trials.shares.cost)
    except ValueError:
        if trials.budget.seconds is None:
            raise
        return _random(trials, seed)  # in the time that is left; what was evaluated can be chosen
    if rungs[0].candidates < len(rest):
        wanted = set(_shuffled(trials, seed, rest)[: rungs[0].candidates])
        rest = [name for name in rest if name in wanted]
    told = []
    for rung in rungs:
        done = trials.run(rest[: rung.candidates], rung.part, reserve=min(last.candidates, trials.at_once))
        told.append(f"{len(done)} on {trials.shares.cost(rung.part):.0%}")
        if len(done) < min(len(rest), rung.candidates):
            rest = trials.ranked(done, rung.part) if done else []
            break
        rest = trials.ranked(done, rung.part)
    is_late = trials.seconds_left <= 0
    finalists = [name for name in trials.with_twins(rest) if name not in trials.known()]  # those take no room
    done = trials.run(finalists[: trials.at_once if is_late else last.candidates], always=True)
    told.append(f"{len(done)} on all")
    return _told(f"successive halving ({', '.join(told)} of the validation samples)", trials)


def _optuna(trials: Trials, seed: int) -> str:
    optuna: Any = import_module("optuna")
    places = {(entry.rule, entry.pruning, entry.scale): name for name, entry in trials.pool.items()}
    values: dict[str, list[Any]] = {"rule": [], "pruning": []}
    for rule, pruning, _ in places:
        values["rule"] += [rule] * (rule not in values["rule"])
        values["pruning"] += [pruning] * (pruning not in values["pruning"])
    scales = {rule: sorted({scale for own, _, scale in places if own == rule}) for rule in values["rule"]}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its means for several trials at a time may change
            study = optuna.create_study(
                direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            )
            idle = 0
            while trials.left >= 1 and trials.seconds_left > 0 and len(trials.known()) < len(trials.pool):
                asked = [study.ask() for _ in range(_ASKED_AT_ONCE)]
                named = [places.get(_place(trial, values, scales)) for trial in asked]
                new = [name for name in trials.with_twins(filter(None, named)) if name not in trials.known()]
                trials.run(new[: int(min(trials.left, len(new)))])
                for trial, name in zip(asked, named, strict=True):
                    if name in trials.known():
                        study.tell(trial, trials.whole.figures(str(name))["id/avg"])
                    else:
                        study.tell(trial, state=optuna.trial.TrialState.FAIL)
                idle = 0 if new else idle + 1
                if idle >= 10:  # it proposes nothing new any more
                    rest = [name for name in _shuffled(trials, seed) if name not in trials.known()]
                    trials.run(rest[: int(min(trials.left, _ASKED_AT_ONCE))])
    finally:
        optuna.logging.set_verbosity(before)
    return _told(f"optuna's tree-structured Parzen estimator (seed {seed})", trials)


def _place(trial: Any, values: dict[str, list[Any]], scales: dict[str, list[float]]) -> tuple[str, str, float]:
    rule = trial.suggest_categorical("rule", values["rule"])
    pruning = trial.suggest_categorical("pruning", values["pruning"])
    own = scales[rule]
    return rule, pruning, own[trial.suggest_int(f"scale of {rule}", 0, len(own) - 1)]


def _shuffled(trials: Trials, seed: int, names: list[str] | None = None) -> list[str]:
    order = list(trials.pool) if names is None else list(names)
    random.Random(seed).shuffle(order)
    return order


def _told(how: str, trials: Trials) -> str:
    return f"{len(trials.known())} of {len(trials.pool)} candidates were evaluated on all validation samples: {how}."


STRATEGIES: dict[str, Callable[[Trials, int], str]] = {
    "auto": _auto,
    "grid": _grid,
    "random": _random,
    "halving": _halving,
    "optuna": _optuna,
}
"""By name; each returns what it did."""

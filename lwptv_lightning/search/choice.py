"""Which of many merged models to take, by their accuracy on validation data and their distance from the base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from lwptv_lightning.registry import require_kind, require_known, require_texts
from lwptv_lightning.search.compare import SweepResult, paired_difference, weights_over


def best(result: SweepResult, domain: str | Sequence[str] = "id", names: Iterable[str] | None = None) -> str:
    """Return the candidate with the highest average over a domain.

    Of several, the one nearest to the base is taken, and of these the first.

    Args:
        result: What `sweep` found on validation data, of which no sample is among those to report.
        domain: What is averaged over, as in `SweepResult.difference`.
        names: Which candidates to choose among; all by default.

    Raises:
        UnknownNameError: There is no set of such a domain, or no such candidate.
        ValueError: There is no candidate to choose among, or a set has no sample.

    Example:
        >>> import torch
        >>> right = torch.tensor([[True, False, False, True], [True, True, False, True]])
        >>> best(SweepResult(("x 0.3", "x 1.0"), {"id/a": right}, {}, {"x 0.3": 0.6, "x 1.0": 2.0}))
        'x 1.0'
    """
    names = _candidates(result, names)
    weights = weights_over(result.outcomes, domain)
    averages = {name: paired_difference(result.correct(name), _nothing(result), weights)[0] for name in names}
    return min(names, key=lambda name: (-averages[name], _distance(result, name)))


def one_standard_error(
    result: SweepResult, domain: str | Sequence[str] = "id", names: Iterable[str] | None = None
) -> str:
    """Return the candidate nearest to the base among those as good as the best, within one standard error.

    As good are those whose average over the domain is below that of `best` by at most one standard error of this paired
    difference over the samples, ``sqrt(sum_s w_s^2 var(d_s) / N_s)``: sets s, of N_s samples with differences d_s in
    {-1, 0, 1}, weigh w_s in the average. Nearest is what has the smallest norm of change, `SweepResult.changes`; of
    several, the one with the higher average is taken, and of these the first.

    Args:
        result: What `sweep` found on validation data, of which no sample is among those to report.
        domain: What is averaged over, as in `SweepResult.difference`.
        names: Which candidates to choose among; all by default.

    Raises:
        UnknownNameError: There is no set of such a domain, or no such candidate.
        ValueError: There is no candidate to choose among, a set has fewer than two samples, or a candidate's norm of
            change is not known.

    Example:
        >>> import torch
        >>> right = torch.tensor([[True, False, False, True], [True, True, False, True]])
        >>> one_standard_error(SweepResult(("x 0.3", "x 1.0"), {"id/a": right}, {}, {"x 0.3": 0.6, "x 1.0": 2.0}))
        'x 0.3'

    Reference:
        Breiman et al., Classification and regression trees (1984), 3.4.3: the simplest model within one standard error
        of the best. There the error is that of the best one's own figure; here it is of the paired difference, which is
        smaller, and the distance from the base stands for complexity.
    """
    names = _candidates(result, names)
    if unknown := [name for name in names if name not in result.changes]:
        raise ValueError(
            f"the norm of change of candidate {unknown[0]!r} is not known, so that the nearest to the base cannot be "
            "told. `sweep` finds it for recipes and for weights of a module with task vectors."
        )
    weights = weights_over(result.outcomes, domain)
    if alone := [loader for loader in weights if result.outcomes[loader].shape[1] == 1]:
        raise ValueError(f"loader {alone[0]!r} has a single sample; a standard error takes two or more.")
    top = best(result, domain, names)
    lost = {name: paired_difference(result.correct(top), result.correct(name), weights) for name in names}
    near = [name for name, (value, variance) in lost.items() if value**2 <= (variance or 0)]
    return min(near, key=lambda name: (_distance(result, name), lost[name][0]))


def choices(result: SweepResult, names: Iterable[str] | None = None) -> dict[str, str]:
    """Return which candidates ID averages choose, each with what chooses it, for tables; for the rest see there.

    Example:
        >>> import torch
        >>> right = torch.tensor([[True, False, False, True], [True, True, False, True]])
        >>> choices(SweepResult(("x 0.3", "x 1.0"), {"id/a": right}, {}, {"x 0.3": 0.6, "x 1.0": 2.0}))
        {'x 1.0': 'best', 'x 0.3': 'one_standard_error'}
    """
    names = _candidates(result, names)
    found: dict[str, str] = {}
    for choose in (best, one_standard_error):
        name = choose(result, names=names)
        found[name] = f"{found[name]}, {choose.__name__}" if name in found else choose.__name__
    return found


def _candidates(result: SweepResult, names: Iterable[str] | None) -> tuple[str, ...]:
    require_kind("result", result, SweepResult, "a SweepResult")
    chosen = result.names if names is None else require_texts("names", names, "names of candidates")
    for name in chosen:
        require_known("candidate", name, result.names)
    if not chosen:
        raise ValueError("there is no candidate to choose among; expected at least one name.")
    return chosen


def _distance(result: SweepResult, name: str) -> float:
    change = result.changes.get(name, math.inf)
    return math.inf if math.isnan(change) else change


def _nothing(result: SweepResult) -> dict[str, Tensor]:
    """Return the outcomes of a model that is never right."""
    return {loader: outcomes.new_zeros(outcomes.shape[1:]) for loader, outcomes in result.outcomes.items()}

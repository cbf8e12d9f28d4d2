"""Fronts of ID over OOD accuracy: what a method reaches over all its points, and how two methods differ in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lwptv_lightning.registry import require_finite, require_kind, require_known, require_texts, require_whole
from lwptv_lightning.search.bootstrap import Replicates, averaged, drawn_averages, leaves_of
from lwptv_lightning.search.compare import Difference, SweepResult, interval_ends

Place: TypeAlias = "str | tuple[float, float]"
"""An ID and an OOD average, or the candidate that has them."""

_Where: TypeAlias = "Sequence[float | Tensor]"

_EQUAL = 1e-9
"""Accuracies nearer than this are equal: they differ by more than that, or by rounding."""


@dataclass(frozen=True)
class Front:
    """The points that one method reaches, such as those of one recipe at several scales.

    On the front are the points of which no other one is better in one average and no worse in the other. Between
    neighbours there a method is taken to reach the straight line, beyond its ends nothing.

    Args:
        id: ID averages of the P points, ``(*, P)``; each index of the first dimensions is a front of its own.
        ood: Their OOD averages, of the same shape.

    Raises:
        TypeError: They are no tensors of floats, which alone hold what lies between two points.
        ValueError: The shapes differ, there is no point, or a figure is not finite.

    Example:
        >>> front = Front(torch.tensor([0.6, 0.7, 0.8, 0.7]), torch.tensor([0.9, 0.8, 0.6, 0.5]))
        >>> front.on_front.tolist(), round(float(front.best_mean), 3), round(float(front.id_at(0.85)), 3)
        ([True, True, True, False], 0.75, 0.65)
    """

    id: Tensor
    ood: Tensor

    def __post_init__(self) -> None:
        for what, given in (("id", self.id), ("ood", self.ood)):
            require_kind(what, given, Tensor, "a tensor of averages")
            if not given.is_floating_point():
                raise TypeError(f"{what} must be a tensor of floats, not of {str(given.dtype).removeprefix('torch.')}.")
            if not given.isfinite().all():
                raise ValueError(f"{what} must be finite, and a point has {float(given[~given.isfinite()][0])}.")
        if self.id.shape != self.ood.shape or not self.id.dim() or not self.id.shape[-1]:
            shapes = f"{tuple(self.id.shape)} and {tuple(self.ood.shape)}"
            raise ValueError(f"id and ood must be of one shape, with at least one point last, not {shapes}.")

    @classmethod
    def of(
        cls,
        result: SweepResult,
        names: Iterable[str],
        *,
        id: str | Sequence[str] = "id",
        ood: str | Sequence[str] = "ood",
    ) -> Front:
        """Return the front of some candidates; for the domains see `SweepResult.difference`."""
        names = _names("names", names, leaves_of(result))
        (found,) = drawn_averages([result], names, (id, ood), 0, torch.Generator())
        return cls(*found[:, 0])

    @property
    def on_front(self) -> Tensor:
        """Which points are on the front, ``(*, P)`` bool; of equal ones the first."""
        order = _order(self.id, self.ood)
        return torch.zeros_like(self.id, dtype=torch.bool).scatter(-1, order, _kept(self.ood.gather(-1, order)))

    @property
    def best_mean(self) -> Tensor:
        """The highest mean of ID and OOD average, ``(*)``."""
        return ((self.id + self.ood) / 2).amax(-1)

    @property
    def best_point(self) -> Tensor:
        """The index of the point that has it, ``(*)``; of several the first."""
        mean = (self.id + self.ood) / 2
        return (mean >= mean.amax(-1, keepdim=True) - _EQUAL).int().argmax(-1)

    def id_at(self, ood: float | Tensor) -> Tensor:
        """Return the highest ID average with an OOD average of at least so much, ``(*)``; nan where none has that."""
        return _highest(self.ood, self.id, ood)

    def ood_at(self, id: float | Tensor) -> Tensor:
        """Return the highest OOD average with an ID average of at least so much, ``(*)``; nan where none has that."""
        return _highest(self.id, self.ood, id)

    def hypervolume(self, reference: Sequence[float | Tensor] = (0.0, 0.0)) -> Tensor:
        """Return the area of all that the points are better than and a reference point is worse than, ``(*)``.

        Args:
            reference: ID and OOD average of that point, numbers or ``(*)``.
        """
        width, height = (torch.as_tensor(end, dtype=self.id.dtype)[..., None] for end in reference)
        order = _order(self.id, self.ood)
        beyond = (self.id.gather(-1, order) - width).clamp(min=0)
        reached = (self.ood.gather(-1, order) - height).clamp(min=0).cummax(-1).values
        return ((beyond - torch.nn.functional.pad(beyond[..., 1:], (0, 1))) * reached).sum(-1)


@dataclass(frozen=True)
class FrontComparison:
    """By how much one method's front is better than another's, as fractions.

    Attributes:
        mean: Difference of the best means of ID and OOD average.
        id_at_ood: Difference in ID average at equal OOD average.
        ood_at_id: Difference in OOD average at equal ID average.
        hypervolume: Difference of the areas that the points are better than, beyond the reference point.
    """

    mean: Difference
    id_at_ood: Difference
    ood_at_id: Difference
    hypervolume: Difference


def compare_fronts(
    results: Replicates,
    first: Iterable[str],
    second: Iterable[str],
    *,
    id: str | Sequence[str] = "id",
    ood: str | Sequence[str] = "ood",
    at: Place | None = None,
    reference: Place = (0.0, 0.0),
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> FrontComparison:
    """Compare the fronts of two methods by a bootstrap that chooses their points anew in each draw.

    A draw takes as many samples from every set as there are, with replacement, the same for all candidates and
    replicates. Where there are several results, it also draws as many of them as there are, at each level, such as zoos
    and for each zoo draws of its unlabelled images; differences are averaged over these.

    Args:
        results: What a sweep found, or several of it with the same candidates, which may be nested.
        first: The candidates that are one method's points.
        second: Those of the method to subtract.
        id: What is averaged over for ID, as in `SweepResult.difference`.
        ood: The same for OOD, such as ``"ood/near"``.
        at: Where ID and OOD average are equal; by default where the second method's best mean is, in each draw. As
            a candidate, what that one has in each draw.
        reference: The point beyond which the hypervolume is measured; a candidate likewise.
        draws: How many bootstrap draws.
        confidence: Coverage of the intervals, in (0, 1).
        seed: For the draws.

    Returns:
        The differences. Where a front does not reach what is to be equal, the value is nan, and draws in which one does
        not count as the worst at the lower end of the interval and as the best at the upper one. Standard errors are
        the standard deviations of the draws.

    Raises:
        UnknownNameError: A result has no such candidate, or no set of such a domain.
        ValueError: There is no result or no point, or a set has no sample.

    Example:
        >>> right = torch.rand(3, 200, generator=torch.Generator().manual_seed(0)) < torch.tensor([[0.5], [0.6], [0.9]])
        >>> found = SweepResult(("base", "plain", "pruned"), {"id/a": right, "ood/near/b": right}, {})
        >>> compare_fronts(found, ["base", "pruned"], ["base", "plain"], ood="ood/near").mean.low > 0
        True
    """
    leaves = leaves_of(results)
    require_whole("draws", draws, 1)
    ends = interval_ends(confidence).tolist()
    methods = [_names(what, given, leaves) for what, given in (("first", first), ("second", second))]
    places = [_place(what, given, leaves) for what, given in (("at", at), ("reference", reference))]
    names = list(dict.fromkeys([*methods[0], *methods[1], *(place for place in places if isinstance(place, str))]))
    rows = [[names.index(name) for name in method] for method in methods]
    generator = torch.Generator().manual_seed(require_whole("seed", seed))
    found = []
    for points in drawn_averages(leaves, names, (id, ood), draws, generator):
        ours, theirs = (Front(*points[..., own]) for own in rows)
        equal, beyond = (
            points[..., names.index(place)].unbind() if isinstance(place, str) else place for place in places
        )
        found.append(_differences(ours, theirs, equal, beyond or (0.0, 0.0)))
    together = averaged(results, found, generator)
    return FrontComparison(*(_difference(values, *ends) for values in together))


def _names(what: str, given: Iterable[str], results: Iterable[SweepResult]) -> tuple[str, ...]:
    names = require_texts(what, given, "names of candidates")
    if not names:
        raise ValueError(f"{what} is empty: expected at least one candidate.")
    for result in results:
        for name in names:
            require_known("candidate", name, result.names)
    return names


def _place(what: str, given: Any, results: Iterable[SweepResult]) -> str | tuple[float, float] | None:
    if given is None and what == "at":
        return None
    if isinstance(given, str):
        return _names(what, [given], results)[0]
    require_kind(what, given, tuple | list, "a candidate's name, or an ID and an OOD average")
    if len(given) != 2:
        raise ValueError(f"{what} must be an ID and an OOD average, not {len(given)} numbers.")
    return require_finite(what, given[0]), require_finite(what, given[1])


def _differences(ours: Front, theirs: Front, at: _Where | None, reference: _Where) -> Tensor:
    """Return the four differences of `FrontComparison`, ``(4, *)``."""
    if at is None:
        best = theirs.best_point[..., None]
        at = theirs.id.gather(-1, best)[..., 0], theirs.ood.gather(-1, best)[..., 0]
    figures = [
        (front.best_mean, front.id_at(at[1]), front.ood_at(at[0]), front.hypervolume(reference))
        for front in (ours, theirs)
    ]
    return torch.stack([our - their for our, their in zip(*figures, strict=True)])


def _difference(values: Tensor, low: float, high: float) -> Difference:
    """Return the first value, and what the others say of its interval."""
    drawn = values[1:]
    lowest, highest = (torch.where(drawn.isnan(), end, drawn) for end in (-math.inf, math.inf))
    least, most = lowest.quantile(low, interpolation="lower"), highest.quantile(high, interpolation="higher")
    return Difference(float(values[0]), float(least), float(most), float(drawn.std(correction=0)))


def _order(x: Tensor, y: Tensor) -> Tensor:
    """Return the order of the points from the largest x to the smallest; of equal ones the largest y first."""
    x, y = ((each.double() / _EQUAL).round() for each in (x, y))  # what differs by rounding is equal
    by_y = y.sort(dim=-1, descending=True, stable=True).indices
    by_both = x.gather(-1, by_y).sort(dim=-1, descending=True, stable=True).indices
    return by_y.gather(-1, by_both)


def _kept(y: Tensor) -> Tensor:
    """Return which points in that order are on the front: those that are higher than all before them."""
    before = torch.nn.functional.pad(y.cummax(-1).values[..., :-1], (1, 0), value=-math.inf)
    return y > before + _EQUAL


def _highest(x: Tensor, y: Tensor, least: float | Tensor) -> Tensor:
    """Return the highest y on the front where x is at least so much."""
    order = _order(x, y)
    level = torch.as_tensor(least, dtype=x.dtype, device=x.device)[..., None]
    nothing = torch.zeros_like(level)  # of several levels for one front each has a front of its own
    x, y = x.gather(-1, order) + nothing, y.gather(-1, order) + nothing
    count = x.shape[-1]
    place = torch.arange(count, device=x.device)
    reaches, kept = x >= level - _EQUAL, _kept(y)
    # The neighbours on the front: the last that reaches it, and the first that does not.
    right = torch.where(kept & reaches, place, -1).amax(-1, keepdim=True)
    left = torch.where(kept & ~reaches, place, count).amin(-1, keepdim=True)
    (x_right, y_right), (x_left, y_left) = (
        (x.gather(-1, index), y.gather(-1, index)) for index in (right.clamp(min=0), left.clamp(max=count - 1))
    )
    way = torch.where(left < count, ((x_right - level) / (x_right - x_left)).clamp(0, 1), 0)
    return torch.where(right < 0, math.nan, y_right + way * (y_left - y_right))[..., 0]

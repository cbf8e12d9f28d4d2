"""Masks: which layer of which task vector is kept; `keep_most_salient` makes one from saliency scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.registry import (
    COUNTS,
    RANKINGS,
    matcher,
    require_kind,
    require_known,
    require_matches,
    require_ratio,
    require_texts,
    shown,
)
from lwptv_lightning.saliency.table import LayerTable, columns_in_order, require_shape


@dataclass(frozen=True)
class LayerMask:
    """Which layers each task keeps.

    Attributes:
        tasks: The T task names.
        layers: The L layer names, in execution order.
        kept: ``(T, L)`` bool; ``False`` is pruned, so that this task leaves the base as it is there.
    """

    tasks: tuple[str, ...]
    layers: tuple[str, ...]
    kept: Tensor

    def __post_init__(self) -> None:
        for name in ("tasks", "layers"):
            object.__setattr__(self, name, require_texts(f"a mask's {name}", getattr(self, name), "names"))
        require_shape("a mask's kept", self.kept, "(T, L)", (len(self.tasks), len(self.layers)))
        if self.kept.dtype != torch.bool:
            raise TypeError(f"a mask's kept must be of torch.bool, not {self.kept.dtype}.")

    def in_order_of(self, layers: Sequence[str]) -> LayerMask:
        """Return the same mask with the same layers in another order; where these are not the same, the mask."""
        columns = columns_in_order(self.layers, layers)
        return self if columns is None else LayerMask(self.tasks, tuple(layers), self.kept[:, columns])

    def __iter__(self) -> Iterator[tuple[str, dict[str, bool]]]:
        for task, row in zip(self.tasks, self.kept.tolist(), strict=True):
            yield task, dict(zip(self.layers, row, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerMask):
            return NotImplemented
        return (self.tasks, self.layers) == (other.tasks, other.layers) and torch.equal(self.kept, other.kept)

    __hash__ = None  # type: ignore[assignment]


def keep_most_salient(
    scores: LayerTable,
    ratio: float,
    *,
    ranking: str = "task",
    count: str = "layers",
    keep: Sequence[str] = (),
    prune: Sequence[str] = (),
) -> LayerMask:
    """Prune the least salient layers.

    Of equal scores the layer that is executed first goes first. Masks of growing ratio are nested.

    Args:
        scores: ``(T, L)``, higher is kept.
        ratio: The fraction to prune, in [0, 1].
        ranking: ``"task"``: each task loses ``floor(ratio * L)`` layers. ``"all"``: ``floor(ratio * T * L)`` go in
            all, whichever task they are of.
        count: ``"layers"``, or ``"parameters"``: then as many layers go, least salient first, as hold no more than
            the fraction ``ratio`` of the elements.
        keep: Glob patterns of layers that are never pruned.
        prune: Glob patterns of layers that every task loses, whatever their score; they count towards ``ratio``.

    Returns:
        The mask, ``(T, L)``.

    Raises:
        ValueError: ``ratio`` is outside [0, 1], or a layer is both kept and pruned.
        UnknownNameError: No such ranking or count, or a pattern that matches no layer.

    Example:
        >>> scores = LayerTable(("a",), ("stem", "head"), torch.tensor([9, 9]), torch.tensor([[0.2, 0.1]]))
        >>> keep_most_salient(scores, 0.5).kept
        tensor([[ True, False]])
    """
    require_kind("scores", scores, LayerTable, "a LayerTable, from score_layers")
    require_ratio(ratio)
    require_known("ranking", ranking, RANKINGS)
    require_known("count", count, COUNTS)
    always_kept, always_pruned = (
        _matching(scores.layers, require_texts(what, patterns, "a sequence of globs"))
        for what, patterns in (("keep", keep), ("prune", prune))
    )
    if both := [name for name, k, p in zip(scores.layers, always_kept, always_pruned, strict=True) if k and p]:
        raise ValueError(f"layer {shown(both[0])} matches both keep={tuple(keep)} and prune={tuple(prune)}.")
    values = scores.values.clone()
    values[:, always_pruned] = -torch.inf
    weights = torch.ones_like(scores.numel) if count == "layers" else scores.numel
    groups = values if ranking == "task" else values.T.reshape(1, -1)
    group_weights = weights if ranking == "task" else weights.repeat_interleave(len(scores.tasks))
    kept = torch.stack([~_least(row, group_weights, ratio) for row in groups])
    if ranking == "all":
        kept = kept.reshape(values.shape[1], values.shape[0]).T.contiguous()
    kept[:, always_pruned] = False
    kept[:, always_kept] = True
    return LayerMask(scores.tasks, scores.layers, kept)


def _matching(layers: Sequence[str], patterns: Sequence[str]) -> Tensor:
    require_matches("layer pattern", patterns, layers)
    return torch.tensor([*map(matcher(patterns), layers)], dtype=torch.bool)


def _least(values: Tensor, weights: Tensor, ratio: float) -> Tensor:
    """Mark the longest run of ascending values whose weights sum to no more than ``ratio`` of all."""
    ascending = values.argsort(stable=True)
    # The small term undoes the rounding of products such as 0.29 * 100 = 28.999999999999996.
    budget = math.floor(ratio * float(weights.sum()) + 1e-9)
    marked = torch.zeros(len(values), dtype=torch.bool)
    marked[ascending[weights[ascending].cumsum(0) <= budget]] = True
    return marked

"""One number for each task and layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerTable:
    """One number per task and layer.

    Attributes:
        tasks: The T task names.
        layers: The L layer names, in execution order.
        numel: Elements per layer, ``(L,)``.
        values: ``(T, L)``, float64.
    """

    tasks: tuple[str, ...]
    layers: tuple[str, ...]
    numel: Tensor
    values: Tensor

    def __iter__(self) -> Iterator[tuple[str, dict[str, float]]]:
        for task, row in zip(self.tasks, self.values.tolist(), strict=True):
            yield task, dict(zip(self.layers, row, strict=True))

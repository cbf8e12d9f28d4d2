"""One number for each task and layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.registry import parse_json, require_kind, require_texts


@dataclass(frozen=True)
class LayerTable:
    """One number per task and layer.

    Attributes:
        tasks: The T task names.
        layers: The L layer names, in execution order.
        numel: Elements per layer, ``(L,)``.
        values: ``(T, L)``, float64.

    Example:
        >>> table = LayerTable(("a",), ("stem", "head"), torch.tensor([9.0, 2.0]), torch.tensor([[0.5, 0.25]]))
        >>> dict(LayerTable.from_json(table.to_json()))
        {'a': {'stem': 0.5, 'head': 0.25}}
    """

    tasks: tuple[str, ...]
    layers: tuple[str, ...]
    numel: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        for name in ("tasks", "layers"):
            object.__setattr__(self, name, require_texts(f"a table's {name}", getattr(self, name), "names"))
        require_shape("a table's numel", self.numel, "(L,)", (len(self.layers),))
        require_shape("a table's values", self.values, "(T, L)", (len(self.tasks), len(self.layers)))

    def __iter__(self) -> Iterator[tuple[str, dict[str, float]]]:
        for task, row in zip(self.tasks, self.values.tolist(), strict=True):
            yield task, dict(zip(self.layers, row, strict=True))

    def in_order_of(self, layers: Sequence[str]) -> LayerTable:
        """Return the same numbers with the same layers in another order; where these are not the same, the table."""
        columns = columns_in_order(self.layers, layers)
        if columns is None:
            return self
        return LayerTable(self.tasks, tuple(layers), self.numel[columns], self.values[:, columns])

    def to_json(self) -> str:
        """Return the table as JSON text, which keeps every bit."""
        numel, values = self.numel.tolist(), self.values.tolist()
        return json.dumps({"tasks": self.tasks, "layers": self.layers, "numel": numel, "values": values})

    @classmethod
    def from_json(cls, text: str) -> LayerTable:
        """Make a table of what `to_json` returned.

        Raises:
            ValueError: It is something else.
        """
        try:
            given = parse_json(text, "a table")
            numel, values = (torch.tensor(given[name], dtype=torch.float64) for name in ("numel", "values"))
            table = cls(tuple(given["tasks"]), tuple(given["layers"]), numel, values)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"expected a table of tasks, layers, numel and values in JSON ({error!r}).") from error
        return table


def require_shape(what: str, given: object, dimensions: str, shape: tuple[int, ...]) -> None:
    """Raise unless something is a tensor of a shape, whose dimensions the message names."""
    require_kind(what, given, Tensor, f"a tensor {dimensions}")
    if isinstance(given, Tensor) and given.is_meta:
        raise ValueError(f"{what} is on the meta device, which holds no values.")
    if isinstance(given, Tensor) and tuple(given.shape) != shape:
        raise ValueError(f"{what} must have the shape {dimensions} = {shape}, not {tuple(given.shape)}.")


def columns_in_order(own: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Return where each of the wanted layers stands among some; None where all stand so or they are not the same.

    Example:
        >>> columns_in_order(["stem", "head"], ["head", "stem"]), columns_in_order(["stem"], ["head"])
        ([1, 0], None)
    """
    positions = {name: position for position, name in enumerate(own)}
    if list(own) == list(wanted) or positions.keys() != set(wanted):
        return None
    return [positions[name] for name in wanted]

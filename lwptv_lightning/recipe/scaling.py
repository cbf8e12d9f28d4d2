"""Coefficients that act on a merged task vector layer by layer, whatever rule made it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lwptv_lightning.layers import Layer, Layers, layers_from_names
from lwptv_lightning.registry import require_known


@dataclass(frozen=True, kw_only=True)
class LiNeS:
    r"""Scale layers by their depth: block i of L by ``alpha + beta i / (L - 1)``, everything else by ``alpha``.

    A single block is scaled by ``alpha + beta``.

    Args:
        alpha: The coefficient of the first block. ``None`` is the published quotient
            ``(|sum_t tau_t|_1 / |merged|_1) / T`` over the whole model, before the recipe's scale.
        beta: How much the last block's coefficient is larger.
        blocks: A regular expression with one group for the block's number, such as ``r"\.resblocks\.(\d+)\."``. By
            default the model's block layers, in their order; where blocks have nothing in common, the outermost
            number in a name.

    Raises:
        ValueError: A number is not finite, or ``blocks`` is no regular expression with one group.

    Example:
        >>> names = ["stem.weight", "blocks.0.weight", "blocks.1.weight", "blocks.2.weight"]
        >>> list(LiNeS(alpha=0.5, beta=0.5, blocks=r"blocks\.(\d+)\.").factors(names, 0.5).values())
        [0.5, 0.5, 0.75, 1.0]

    Reference:
        Wang et al., LiNeS, arXiv 2410.17146. Deviation: the released code takes the first number that stands between
        dots, so that ``resblocks.2.mlp.0.weight`` is scaled as block 0; here the pattern says which number is meant.
    """

    alpha: float | None = None
    beta: float = 0.5
    blocks: str | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, not {value}.")
        if self.blocks is not None:
            try:
                groups = re.compile(self.blocks).groups
            except re.error as error:
                raise ValueError(f"blocks must be a regular expression, not {self.blocks!r} ({error}).") from error
            if groups != 1:
                raise ValueError(f"blocks must have one group for the block's number; {self.blocks!r} has {groups}.")

    def factors(self, names: Sequence[str], alpha: float) -> dict[str, float]:
        """Return the coefficient of each tensor.

        Args:
            names: The tensors' names, in execution order.
            alpha: The coefficient of the first block.

        Raises:
            ValueError: No tensor is in a block.
        """
        number = self._numbers(names)
        if not number:
            raise ValueError(f"LiNeS found no blocks among the tensors; give blocks=r'...', not {self.blocks!r}.")
        last = max(number.values())
        return {
            name: alpha + self.beta * (number[name] / last if last else 1) if name in number else alpha
            for name in names
        }

    def _numbers(self, names: Sequence[str]) -> dict[str, int]:
        if self.blocks is not None:
            found = {name: re.search(self.blocks, name) for name in names}
            return {name: int(match[1]) for name, match in found.items() if match}
        blocks = filter(_is_block, layers_from_names(names, "block"))
        numbers = {name: number for number, layer in enumerate(blocks) for name in layer.tensors}
        return numbers or _outermost_numbers(names)


def _outermost_numbers(names: Sequence[str]) -> dict[str, int]:
    """Number tensors by the outermost numbered container, for blocks that have no module in common."""
    found = {name: re.match(r"(?:.*?\.)??(\d+)\.[^.]+\.", name) for name in names}
    return {name: int(match[1]) for name, match in found.items() if match}


def _is_block(layer: Layer) -> bool:
    """Tell a block from a single module that is numbered too: a block's tensors belong to modules inside it."""
    numbered = layer.name.rpartition(".")[2].isdigit()
    return numbered and any("." in tensor.removeprefix(f"{layer.name}.") for tensor in layer.tensors)


def read_layer_scaling(value: Any) -> LiNeS | dict[str, float] | None:
    """Return a layer scaling from what a recipe was given or JSON holds.

    Args:
        value: ``None``, a `LiNeS`, its fields with ``"name": "lines"``, or layer name to coefficient.

    Raises:
        TypeError: It is none of these.
        ValueError: A coefficient is not finite.
    """
    if value is None or isinstance(value, LiNeS):
        return value
    if isinstance(value, Mapping) and value.get("name") == "lines":
        return LiNeS(**{name: setting for name, setting in value.items() if name != "name"})
    if not isinstance(value, Mapping) or not all(isinstance(factor, int | float) for factor in value.values()):
        raise TypeError(f"layer_scaling must be LiNeS(...) or map layer names to numbers, not {value!r}.")
    for layer, factor in value.items():
        if not math.isfinite(factor):
            raise ValueError(f"layer_scaling of {layer!r} must be finite, not {factor}.")
    return {str(layer): float(factor) for layer, factor in value.items()}


def write_layer_scaling(scaling: LiNeS | Mapping[str, float] | None) -> dict[str, Any] | None:
    """Return a layer scaling as plain values, which `read_layer_scaling` reads."""
    if isinstance(scaling, LiNeS):
        return {"name": "lines", **dataclasses.asdict(scaling)}
    return None if scaling is None else dict(scaling)


def tensor_factors(
    scaling: LiNeS | Mapping[str, float] | None,
    names: tuple[str, ...],
    layers: Layers | None,
    published_alpha: Callable[[], float],
) -> dict[str, float]:
    """Return the coefficient of each tensor.

    Args:
        scaling: LiNeS, a coefficient for each layer (1 where not given), or nothing.
        names: The merged tensors.
        layers: The layers that a mapping speaks of.
        published_alpha: Computes LiNeS' own alpha, where it is asked for.

    Raises:
        UnknownNameError: A mapping names a layer that does not exist.
    """
    if scaling is None:
        return dict.fromkeys(names, 1.0)
    if isinstance(scaling, LiNeS):
        return scaling.factors(names, published_alpha() if scaling.alpha is None else scaling.alpha)
    assert layers is not None  # a recipe with such a mapping needs layers
    for layer in scaling:
        require_known("layer", layer, layers.names)
    return {name: scaling.get(layer.name, 1.0) for layer in layers for name in layer.tensors}

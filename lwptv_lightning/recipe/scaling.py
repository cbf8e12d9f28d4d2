"""Coefficients that act on a merged task vector layer by layer, whatever rule made it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lwptv_lightning.registry import (
    FrozenDict,
    check_parameters,
    declared,
    documented,
    from_values,
    number,
    require_finite,
    require_known,
    shown,
)

if TYPE_CHECKING:
    from lwptv_lightning.layers import Layer, Layers


_OUTERMOST = r"^(?:.*?\.)??(\d+)\.[^.]+\."
_MOST_DIGITS = 1000
"""Python reads no number of some thousand digits, nor has a model so many blocks."""


def _regular_expression(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a regular expression, not {shown(value)}.")
    try:
        groups = re.compile(value).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{name} must be a regular expression, not {shown(value)} ({error}).") from error
    if groups != 1:
        raise ValueError(f"{name} must have one group for the block's number; {shown(value)} has {groups}.")
    return value


@documented
@dataclass(frozen=True, kw_only=True)
class LiNeS:
    r"""Scale layers by their depth: block i of L by ``alpha + beta i / (L - 1)``, everything else by ``alpha``.

    A single block is scaled by ``alpha + beta``.

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

    alpha: float | None = number(
        None,
        "(-inf, inf)",
        "the first block's coefficient, by default the published quotient `(|sum_t tau_t|_1 / |merged|_1) / T` over "
        "the whole model, before the recipe's scale; with `calibrate`, which comes after it, of what that made",
    )
    beta: float = number(0.5, "(-inf, inf)", "how much the last block's coefficient is larger")
    blocks: str | None = declared(
        None,
        "a regular expression",
        _regular_expression,
        r"what finds a block's number by its one group, such as `\.resblocks\.(\d+)\.`; by default the blocks are the "
        "model's block layers in their order or, where these have nothing in common, the outermost number in a name",
        str,
    )

    def __post_init__(self) -> None:
        check_parameters(self)

    def factors(self, names: Sequence[str], alpha: float) -> dict[str, float]:
        """Return the coefficient of each tensor; names in execution order, ``alpha`` is the first block's.

        Raises:
            ValueError: No tensor is in a block.
        """
        numbers = self._numbers(names)
        if not numbers:
            raise ValueError(f"LiNeS found no blocks among the tensors; give blocks=r'...', not {shown(self.blocks)}.")
        last = max(numbers.values())
        depths = {name: number / last if last else 1 for name, number in numbers.items()}
        return {name: alpha + self.beta * depths[name] if name in depths else alpha for name in names}

    def _numbers(self, names: Sequence[str]) -> dict[str, int]:
        if self.blocks is not None:
            return _found_numbers(self.blocks, names)
        # Imported here so that the command line's help, which lists LiNeS' fields, does not wait for torch.
        from lwptv_lightning.layers import layers_from_names

        blocks = filter(_is_block, layers_from_names(names, "block"))
        numbers = {name: number for number, layer in enumerate(blocks) for name in layer.tensors}
        # Blocks that have no module in common are numbered by the outermost numbered container.
        return numbers or _found_numbers(_OUTERMOST, names)


def _found_numbers(pattern: str, names: Sequence[str]) -> dict[str, int]:
    if pattern == _OUTERMOST:
        matches = {name: re.search(pattern, name) for name in names}
        return {name: _block_number(pattern, match[1]) for name, match in matches.items() if match}
    # Imported here, as above, because of torch. A recipe's pattern may be a stranger's.
    from lwptv_lightning.checkpoints import found_groups

    try:
        found = zip(names, found_groups(pattern, names), strict=True)
    except ValueError as error:
        raise ValueError(f"blocks={shown(pattern)}: {error}.") from error
    return {name: _block_number(pattern, groups[0]) for name, groups in found if groups}


def _block_number(pattern: str, found: str | None) -> int:
    if found is None or not found.isdecimal() or len(found) > _MOST_DIGITS:
        wanted = f"blocks={shown(pattern)} must find the number of a block by its group"
        raise ValueError(f"{wanted}, and found {shown(found)}.")
    return int(found)


def _is_block(layer: Layer) -> bool:
    """Tell a block from a single module that is numbered too: a block's tensors belong to modules inside it."""
    numbered = layer.name.rpartition(".")[2].isdigit()
    return numbered and any("." in tensor.removeprefix(f"{layer.name}.") for tensor in layer.tensors)


def read_layer_scaling(name: str, value: Any) -> LiNeS | dict[str, float]:
    """Return a layer scaling from a `LiNeS`, its fields with ``"name": "lines"``, or layer name to coefficient."""
    if isinstance(value, LiNeS):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be LiNeS(...) or map layer names to numbers, not {shown(value)}.")
    if value.get("name") == "lines":
        return from_values(LiNeS, "field of LiNeS", {key: item for key, item in value.items() if key != "name"})
    # Sorted, because their order has no meaning and equal recipes are to be equal.
    factors = {str(layer): require_finite(f"{name}[{shown(layer)}]", factor) for layer, factor in value.items()}
    return FrozenDict(sorted(factors.items()))


def tensor_factors(
    scaling: LiNeS | Mapping[str, float] | None,
    names: tuple[str, ...],
    layers: Layers | None,
    published_alpha: Callable[[], float],
) -> dict[str, float]:
    """Return the coefficient of each tensor: LiNeS', or that of its layer (1 where not given), or 1.

    Args:
        scaling: LiNeS, a coefficient for each layer, or nothing.
        names: The merged tensors.
        layers: The layers that a mapping speaks of; `UnknownNameError` where it names another.
        published_alpha: Computes LiNeS' own alpha, where it is asked for.
    """
    if scaling is None:
        return dict.fromkeys(names, 1.0)
    if isinstance(scaling, LiNeS):
        return scaling.factors(names, published_alpha() if scaling.alpha is None else scaling.alpha)
    if layers is None:
        raise TypeError("layers must be given with coefficients by layer.")
    for layer in scaling:
        require_known("layer", layer, layers.names)
    return {name: scaling.get(layer.name, 1.0) for layer in layers for name in layer.tensors}

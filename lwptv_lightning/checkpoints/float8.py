"""Float8 weights with scales beside them, read as the float32 weights that they stand for.

A file alone says how: a weight is its stored numbers times the scale of the tensor, of their row or column, or of their
block, which the shapes tell. What DeepSeek and transformers call ``weight_scale_inv`` multiplies, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, TensorHeader, some_of
from lwptv_lightning.checkpoints.names import quantization_config

_ACTIVATIONS = {
    *("input_scale", "output_scale", "activation_scale", "scale_input", "scale_output"),
    *("q_scale", "k_scale", "v_scale", "prob_output_scale"),
}
"""Last parts of names of single numbers by which inputs of quantized layers are scaled."""
_MARKS = {"comfy_quant", "scaled_fp8"}
"""Last parts of names of what says that a layer, or a model, is quantized."""
_MORE_SCALES = ("scale_2", "global_scale", "zero_point")
"""What a weight has beside its scale that is more than numbers times a scale."""
_USUAL_BLOCK = 128
"""DeepSeek's, which the others took over; otherwise blocks are taken to be a divisor or a power of two."""
_ADVICE = "dequantize it first, by the library that wrote it"


@dataclass(frozen=True)
class _Scaled:
    """A float8 weight and its scale.

    Attributes:
        stored: The weight's name in the file.
        scale: The scale's.
        grid: The scale's shape, brought to as many dimensions as the weight has.
        blocks: How many elements along each of these have one scale.
    """

    stored: str
    scale: str
    grid: tuple[int, ...]
    blocks: tuple[int, ...]


class _UnfitError(ValueError):
    """A scale whose shape does not tell what it scales, in words that follow "which"."""


def dequantized(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with float8 weights that have scales as float32 weights, each computed when it is read.

    Scales of activations beside them are left out. float8 tensors without a scale are numbers like any other.

    Raises:
        CheckpointError: The shapes do not tell what a scale is of.

    Example:
        >>> from lwptv_lightning import open_checkpoint
        >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).to(torch.float8_e4m3fn)
        >>> found = open_checkpoint({"fc.weight": weight, "fc.weight_scale": torch.tensor([[0.5], [2.0]])})
        >>> found.names, found.read("fc.weight").tolist()
        (('fc.weight',), [[0.5, 1.0], [6.0, 8.0]])
    """
    float8 = [name for name, header in checkpoint.headers.items() if _is_float8(header)]
    config = quantization_config(checkpoint) if float8 else {}
    weights = _with_layouts(checkpoint, _pairs(checkpoint, float8, config), config)
    if not weights:
        return checkpoint
    by_stored = {each.stored: name for name, each in weights.items()}
    scales = {each.scale for each in weights.values()}
    headers: dict[str, TensorHeader] = {}
    for name, header in checkpoint.headers.items():
        if name in by_stored:
            headers[by_stored[name]] = TensorHeader(header.shape, torch.float32)
        elif name not in scales and not _is_left_over(name, checkpoint):
            headers[name] = header
    made = checkpoint.with_tensors(headers, _Dequantizer(checkpoint, weights))
    made.dequantized = tuple(weights)
    return made


def _is_float8(header: TensorHeader) -> bool:
    return header.dtype.is_floating_point and header.dtype.itemsize == 1


def _is_left_over(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a tensor serves quantized layers alone; transformers writes scales of some weights that are not."""
    last = name.rpartition(".")[2]
    if name.endswith("_scale_inv"):
        return name.removesuffix("_scale_inv") in checkpoint.headers
    return last in _MARKS or (last in _ACTIVATIONS and checkpoint.headers[name].numel == 1)


def _pairs(checkpoint: Checkpoint, float8: Sequence[str], config: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the name that each weight shall have, to its name in the file and its scale's."""
    headers, pairs = checkpoint.headers, {}
    for stored in float8:
        name, *known = _scales_of(stored, config)
        # Of a model that was cast to float8, a parameter that is called a scale was too.
        found = [each for each in known if each in headers and _is_scale(headers[each], headers[stored])]
        more = [each for each in (f"{name}_{kind}" for kind in _MORE_SCALES) if each in headers]
        if not found:
            continue
        if len(found + more) > 1 or name in pairs or (name != stored and name in headers):
            raise CheckpointError(
                f"{checkpoint.source}: quantized weights: {stored!r} is {_words(headers[stored])} with "
                f"{some_of(found + more)} beside it, and is expected once, with one scale; {_ADVICE}."
            )
        pairs[name] = stored, found[0]
    return pairs


def _scales_of(stored: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the name of the weight that a tensor holds, and those that its scale may have."""
    home, dot, last = stored.rpartition(".")
    if last == "_data":  # of quanto
        return home, f"{home}._scale"
    if torchaos := re.fullmatch(r"_(\w+)_qdata", last):
        return f"{home}{dot}{torchaos[1]}", f"{home}{dot}_{torchaos[1]}_scale"
    names = (stored, f"{stored}_scale", f"{stored}_scale_inv")
    if last != "weight":
        return names
    # Alone, a scale could be a divisor; beside a configuration of this kind it is DeepSeek's.
    is_deepseeks = config.get("quant_method") == "fp8"
    return (*names, f"{home}{dot}scale_weight", *([f"{home}{dot}scale"] if is_deepseeks else []))


def _is_scale(header: TensorHeader, weight: TensorHeader) -> bool:
    return header.dtype.is_floating_point and header.dtype != weight.dtype and header.numel > 0


def _words(header: TensorHeader) -> str:
    return f"{str(header.dtype).removeprefix('torch.')} of shape {header.shape}"


def _with_layouts(
    checkpoint: Checkpoint, pairs: Mapping[str, tuple[str, str]], config: Mapping[str, Any]
) -> dict[str, _Scaled]:
    headers, said = checkpoint.headers, _block_said(config)
    shapes = {name: (headers[stored].shape, headers[scale].shape) for name, (stored, scale) in pairs.items()}
    # A vector that would fit the rows of a square weight as well as its columns is as those of the other weights are.
    sides = {_side(weight, scale) for weight, scale in shapes.values()} - {None, "both"}
    usual = sides.pop() if len(sides) == 1 else None
    found = {}
    for name, (stored, scale) in pairs.items():
        weight, scales = shapes[name]
        try:
            grid = _grid(weight, scales, usual)
            blocks = _blocks(weight, grid, said)
        except _UnfitError as error:
            raise CheckpointError(
                f"{checkpoint.source}: quantized weights: {stored!r} is {_words(headers[stored])} with the scale "
                f"{scale!r} of shape {scales} beside it, which {error}"
            ) from error
        found[name] = _Scaled(stored, scale, grid, blocks)
    return found


def _block_said(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the block that a configuration names, as DeepSeek and transformers or as compressed-tensors writes it."""
    said = config.get("weight_block_size")
    groups = config.get("config_groups")
    if said is None and isinstance(groups, Mapping):
        weights = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
        blocks = [each.get("block_structure") for each in weights if isinstance(each, Mapping)]
        said = blocks[0] if blocks and all(each == blocks[0] for each in blocks) else None
    is_block = isinstance(said, list) and all(type(each) is int and each > 0 for each in said)
    return tuple(said) if is_block and isinstance(said, list) else None


def _side(weight: tuple[int, ...], scale: tuple[int, ...]) -> str | None:
    """Return which dimensions of a weight a scale of fewer ones is of, ``"first"`` or ``"last"``; None of any."""
    if math.prod(scale) == 1 or len(scale) >= len(weight):
        return None
    first, last = weight[: len(scale)] == scale, weight[len(weight) - len(scale) :] == scale
    return "both" if first and last else "first" if first else "last" if last else None


def _grid(weight: tuple[int, ...], scale: tuple[int, ...], usual: str | None) -> tuple[int, ...]:
    """Return a scale's shape with as many dimensions as the weight's."""
    ones = (1,) * (len(weight) - len(scale))
    if math.prod(scale) == 1:
        return (1,) * len(weight)
    if len(scale) == len(weight):
        return scale
    side = _side(weight, scale)
    side = usual if side == "both" else side
    if side is None and _side(weight, scale) == "both":
        raise _UnfitError(f"would fit its rows as well as its columns; {_ADVICE}.")
    if side is None:
        raise _UnfitError(f"is neither one number, nor one for each row, column or block; {_ADVICE}.")
    return scale + ones if side == "first" else ones + scale


def _blocks(weight: tuple[int, ...], grid: tuple[int, ...], said: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return how many elements along each dimension have one scale."""
    if said is not None and len(said) <= len(weight) and math.prod(grid) > 1:
        blocks = (1,) * (len(weight) - len(said)) + said
        if all(math.ceil(length / block) == count for length, block, count in zip(weight, blocks, grid, strict=True)):
            return blocks
    return tuple(_block(length, count) for length, count in zip(weight, grid, strict=True))


def _block(length: int, count: int) -> int:
    """Return how long the blocks are of which a dimension has so many, the last of them perhaps in part."""
    if count in (1, length):
        return length if count == 1 else 1
    powers = {1 << power for power in range(1, length.bit_length())}
    fitting = {block for block in powers if math.ceil(length / block) == count}
    fitting |= {length // count} if count and length % count == 0 else set()
    if _USUAL_BLOCK in fitting:
        return _USUAL_BLOCK
    if len(fitting) > 1:
        raise _UnfitError(
            f"would fit blocks of {' as well as of '.join(map(str, sorted(fitting)))}; say which by weight_block_size, "
            "[rows, columns], in the quantization_config of the config.json beside the file."
        )
    if not fitting:
        raise _UnfitError(f"is neither one number, nor one for each row, column or block; {_ADVICE}.")
    return fitting.pop()


@dataclass(frozen=True)
class _Dequantizer:
    """Reads float8 weights as float32, and other tensors as they are."""

    checkpoint: Checkpoint
    weights: Mapping[str, _Scaled]

    def read(self, name: str) -> Tensor:
        if name not in self.weights:
            return self.checkpoint.read(name)
        how = self.weights[name]
        values = self.checkpoint.read(how.stored).to(torch.float32)
        return _scale_(values, self.checkpoint.read(how.scale).to(torch.float32).reshape(how.grid), how.blocks)


def _scale_(values: Tensor, scale: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """Multiply each block by its scale, in place, a slice of blocks at a time."""
    within = [at for at, block in enumerate(blocks) if block > 1 and scale.shape[at] > 1]
    for at in within[1:]:
        scale = scale.repeat_interleave(blocks[at], at).narrow(at, 0, values.shape[at])
    if not within:
        return values.mul_(scale)
    at, block = within[0], blocks[within[0]]
    for position, part in enumerate(torch.split(values, block, at)):
        part.mul_(scale.narrow(at, position, 1))
    return values

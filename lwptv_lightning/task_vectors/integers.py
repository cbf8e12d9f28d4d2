"""Tensors that are no floating numbers, which no merge changes: quantized weights are refused, others that differ told.

Of weights that are stored as integers, or as float8, with scales beside them, a merge would combine the scales and
keep the base's integers: a model that is neither one. Where base and task have the same of both, nothing is merged
there, as in a quantized backbone with heads of their own.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from lwptv_lightning.checkpoints import (
    Checkpoint,
    CheckpointError,
    TensorHeader,
    is_adapter,
    is_quantized,
    is_task_vector,
    some_of,
)
from lwptv_lightning.registry import matcher
from lwptv_lightning.task_vectors.schemes import scheme_of

_SCALES = {"scale", "scales", "scb", "absmax", "zero", "zeros", "qzeros", "amax", "map"}
"""Words in the names of what integers are multiplied by, or shifted, to be weights."""
_BESIDE_SCALE = {"inv", "point", "points", "quant"}
_WEIGHTS = {
    "weight",
    "weights",
    "qweight",
    "kernel",
    "w",
    "q",
    "wq",
    "int",
    "packed",
    "codes",
    "blocks",
    "data",
    "qdata",
}
"""Words in the names of weights."""
_KIND = re.compile(r"(u?int|fp|float|nf)\d+")
_NO_WEIGHTS = {"index", "indices", "idx", "id", "ids", "mask", "masks", "shape", "format", "tracked"}
_COUNTERS = {"tracked", "averaged", "step", "steps", "count", "counts", "counter", "iter", "iters"}
_COUNTERS |= {"iteration", "iterations", "epoch", "epochs", "update", "updates", "batches", "samples", "seen"}
"""Words in the names of counters, of which a model in training has as many as it likes."""
_PACKED = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.int64)
KEPT = "no floating number and not as in the base, whose values are kept"
"""What is said of a tensor that a task changed and no merge does."""
_ADVICE = "Dequantize the base and the tasks first{}, or leave the weights and their scales out with exclude=(...)."


def quantized(headers: Mapping[str, TensorHeader], *, declared: bool = False) -> dict[str, tuple[str, ...]]:
    """Return the quantized weights among some tensors, each with its scales, as names, kinds and neighbours tell them.

    Args:
        headers: Name to shape and dtype.
        declared: Whether it is known that there are some, so that any matrix of small integers or of float8 is one.

    Example:
        >>> weight, scale = TensorHeader((4, 8), torch.int8), TensorHeader((4, 1), torch.float32)
        >>> ids = TensorHeader((1, 8), torch.int64)
        >>> quantized({"fc.weight": weight, "fc.weight_scale": scale, "position_ids": ids})
        {'fc.weight': ('fc.weight_scale',)}
    """
    packed = [name for name, header in headers.items() if _may_be_packed(name, header)]
    beside: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in headers if packed else ():
        if _words(name) & _SCALES:
            beside[_place(name)].append(name)
    found = {}
    for name in packed:
        near, dtype = beside[_place(name)], headers[name].dtype
        if dtype.is_floating_point and (pickled := f"{name.rpartition('.')[0]}._extra_state") in headers:
            near = [*near, pickled]  # where TransformerEngine keeps scales
        # Of a model that was cast to float8, a scale was too.
        scales = [each for each in near if not (dtype.is_floating_point and headers[each].dtype == dtype)]
        if scales or _is_matrix_of_integers(name, headers[name], declared):
            found[name] = tuple(scales)
    # Powers of two without a sign are scales wherever they stand, and no sum is one.
    known = {scale for scales in found.values() for scale in scales}
    powers = (name for name, header in headers.items() if header.dtype == torch.float8_e8m0fnu)
    found |= {name: () for name in powers if name not in known}
    # VPTQ keeps no numbers but which of its centroids they are.
    for name in (name for name in headers if name.endswith("centroids.weight")):
        if (indices := name.replace("centroids.weight", "indices")) in headers:
            found[indices] = (name,)
    return found


@contextmanager
def telling_forms(base: Checkpoint, expert: Checkpoint, ignored: Sequence[str], *, named: bool) -> Iterator[None]:
    """Tell in the place of a `CheckpointError` within that either base or expert has quantized weights, by any names.

    Args:
        base: The base.
        expert: Weights by names of their own.
        ignored: Globs of tensors that are not merged.
        named: Whether to say which file it is.
    """
    try:
        yield
    except CheckpointError as error:
        if is_adapter(expert) or is_task_vector(expert) or not (wrong := _quantized_alone(base, expert, ignored)):
            raise
        holder, words = wrong
        raise CheckpointError(f"{holder.source}: {words}" if named else words) from error


def _quantized_alone(base: Checkpoint, expert: Checkpoint, ignored: Sequence[str]) -> tuple[Checkpoint, str] | None:
    """Return which of base and expert has quantized weights where the other has none, and words of it."""
    is_ignored = matcher(ignored)
    held = {}
    for checkpoint in (expert, base):
        found = quantized(checkpoint.headers, declared=is_quantized(checkpoint))
        # Globs are of names that this file may have under a prefix.
        held[checkpoint] = {name: scales for name, scales in found.items() if not any(map(is_ignored, _ends(name)))}
    if all(held.values()) or not any(held.values()):
        return None
    holder, found = next((checkpoint, found) for checkpoint, found in held.items() if found)
    return holder, ("the base's " if holder is base else "") + _told(found, holder)


def quantized_apart(
    base: Checkpoint, expert: Checkpoint, is_ignored: Callable[[str], bool], *, read: bool = True
) -> str:
    """Return what is wrong where quantized weights or their scales are not the same in base and expert; else nothing.

    Args:
        base: The base.
        expert: Weights under the base's names.
        is_ignored: Tells tensors that are not merged.
        read: Whether values are compared; without, the same names, shapes and kinds are enough to be wrong.
    """
    found: dict[str, tuple[str, ...]] = {}
    holders: dict[str, Checkpoint] = {}
    for checkpoint in (base, expert):
        own = quantized(checkpoint.headers, declared=is_quantized(checkpoint))
        found |= own
        holders |= dict.fromkeys(own, checkpoint)
    wrong = []
    for weight, scales in found.items():
        names = (weight, *scales)
        if all(map(is_ignored, scales or names)):
            continue
        if not read or any(differs(name, base, expert) for name in names):
            wrong.append(weight)
    if not wrong:
        return ""
    holder = holders[wrong[0]]
    return ("the base's " if holder is base else "") + _told({name: found[name] for name in wrong}, holder)


def quantized_by(checkpoint: Checkpoint) -> dict[str, str]:
    """Return a checkpoint's quantized weights, each with the library that made it, empty where nothing tells."""
    found = quantized(checkpoint.headers, declared=is_quantized(checkpoint))
    return {name: scheme_of(name, checkpoint)[0] for name in found}


@contextmanager
def telling_quantized(base: Checkpoint) -> Iterator[None]:
    """Add to a `CheckpointError` within that a base has quantized weights, where it has some."""
    try:
        yield
    except CheckpointError as error:
        packed = quantized_by(base)
        if not packed:
            raise
        by = f" ({scheme})" if (scheme := next(iter(packed.values()))) else ""
        raise CheckpointError(
            f"{error} The base has quantized weights{by}; dequantize it first: {some_of(list(packed), 3)}"
        ) from error


def _told(found: Mapping[str, tuple[str, ...]], holder: Checkpoint) -> str:
    """Say that there are quantized weights, who made the first one and what to do."""
    (first, scales), *more = found.items()
    others = f" So are {some_of([name for name, _ in more], 3)}" if more else ""
    dtype = str(holder.headers[first].dtype).removeprefix("torch.")
    with_scale = f" with {scales[0]!r} beside it" if scales else ""
    scheme, way = scheme_of(first, holder)
    by, how = f" ({scheme})" if scheme else "", f", by {way}" if way else ""
    return (
        f"quantized weights: {first!r} is {dtype}{with_scale}{by}; merged as they are, these would be neither model's."
        f"{others} {_ADVICE.format(how)}"
    )


def _ends(name: str) -> Iterator[str]:
    """Yield a name, and it without the first of its parts, the first two, and so on."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name


def require_dequantized(task: str, expert: Checkpoint, base: Checkpoint, ignored: Sequence[str]) -> None:
    """Raise a `CheckpointError` where quantized weights, or their scales, are not the same in a task and the base."""
    if wrong := quantized_apart(base, expert, matcher(ignored)):
        raise CheckpointError(f"task {task!r} ({expert.source}): {wrong}")


def differing(names: Iterable[str], base: Checkpoint, expert: Checkpoint) -> Iterator[str]:
    """Yield the tensors among some that are no floating numbers, no counters, and not the same in base and expert."""
    for name in names:
        header = base.headers[name]
        if not header.dtype.is_floating_point and not _is_counter(name, header) and differs(name, base, expert):
            yield name


def told_of(differing: Sequence[str]) -> str:
    """Return what is said of tensors that differ but are not merged; empty where there are none."""
    return f"{KEPT}: {some_of(differing, 3)}" if differing else ""


def _may_be_packed(name: str, header: TensorHeader) -> bool:
    is_float8 = header.dtype.is_floating_point and header.dtype.itemsize == 1
    if header.numel < 2 or not (is_float8 or header.dtype in _PACKED):
        return False
    words = _words(name)
    return not words & (_NO_WEIGHTS | _SCALES) and (not is_float8 or bool(words & _WEIGHTS))


def _is_matrix_of_integers(name: str, header: TensorHeader, declared: bool) -> bool:
    """Whether a tensor is a weight that no layer computes with, also where no scale is found beside it."""
    words = _words(name)
    # Wide integers are mostly indices, whatever they are called.
    named = words & {"weight", "weights"} or (header.dtype != torch.int64 and (declared or words & _WEIGHTS))
    return bool(named) and len(header.shape) > 1 and (declared or not header.dtype.is_floating_point)


def _place(name: str) -> tuple[str, ...]:
    """Return a name without the words that tell weights from their scales, by which the two are found together."""
    words = re.findall(r"[a-z]+\d*|\d+", name.lower())
    return tuple(word for word in words if word not in _SCALES | _BESIDE_SCALE | _WEIGHTS and not _KIND.fullmatch(word))


def _words(name: str) -> set[str]:
    """Return the words in the last part of a name, in small letters, and ``weight`` where it is a part of a weight."""
    return set(re.findall(r"[a-z]+", re.findall(r"(?:\bweights?\.)?[^.]*$", name.lower())[0]))


def _is_counter(name: str, header: TensorHeader) -> bool:
    return header.numel == 1 and bool(_words(name) & _COUNTERS)


def differs(name: str, base: Checkpoint, expert: Checkpoint) -> bool:
    """Whether a tensor has other values, another shape or another kind in two checkpoints, or is in one alone."""
    ours, theirs = base.headers.get(name), expert.headers.get(name)
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return True
    if (ours.dtype.is_floating_point, ours.dtype.is_complex) != (
        theirs.dtype.is_floating_point,
        theirs.dtype.is_complex,
    ):
        return True
    if not ours.numel:
        return False
    values, others = base.read(name), expert.read(name)
    if ours.dtype == theirs.dtype:  # to the bit, in dtypes that cannot be compared too
        values, others = (each.contiguous().reshape(-1).view(torch.uint8) for each in (values, others))
        return not torch.equal(values, others)
    if torch.uint64 in (ours.dtype, theirs.dtype):  # of which no other dtype holds all
        return values.tolist() != others.tolist()
    is_whole = not (ours.dtype.is_floating_point or ours.dtype.is_complex)
    wide = torch.int64 if is_whole else torch.complex128 if ours.dtype.is_complex else torch.float64
    return not torch.equal(values.to(wide), others.to(wide))

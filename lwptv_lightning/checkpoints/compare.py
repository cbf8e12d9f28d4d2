"""How the tensors of one checkpoint fit those of another, told from their headers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lwptv_lightning.checkpoints.checkpoint import TensorHeader
from lwptv_lightning.registry import matches


@dataclass(frozen=True)
class HeaderComparison:
    """Names of tensors, in the order of their checkpoint.

    Attributes:
        matched: In both, of one shape and of one kind, which is floating or not.
        missing: Only in the base.
        extra: Only in the other.
        reshaped: In both, of different shapes.
        other_kind: In both, of one shape, but floating in one alone.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    reshaped: tuple[str, ...]
    other_kind: tuple[str, ...]


def compare_headers(
    base: Mapping[str, TensorHeader], other: Mapping[str, TensorHeader], ignored: Collection[str] = ()
) -> HeaderComparison:
    """Compare names, shapes and kinds of two checkpoints' tensors.

    Args:
        base: Name to header.
        other: The same of what is compared with it.
        ignored: Globs of names that are left aside on both sides.

    Example:
        >>> import torch
        >>> headers = {name: TensorHeader((2,), torch.float32) for name in "ab"}
        >>> found = compare_headers(headers, {"b": TensorHeader((3,), torch.float32)})
        >>> found.missing, found.reshaped
        (('a',), ('b',))
    """
    found: dict[str, list[str]] = {"matched": [], "missing": [], "extra": [], "reshaped": [], "other_kind": []}
    for name, ours in base.items():
        if not matches(name, ignored):
            found["missing" if name not in other else _fit(ours, other[name])].append(name)
    found["extra"] = [name for name in other if name not in base and not matches(name, ignored)]
    return HeaderComparison(**{fit: tuple(names) for fit, names in found.items()})


def _fit(ours: TensorHeader, theirs: TensorHeader) -> str:
    if ours.shape != theirs.shape:
        return "reshaped"
    return "matched" if ours.dtype.is_floating_point == theirs.dtype.is_floating_point else "other_kind"

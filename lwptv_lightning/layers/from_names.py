"""Layers by the names of tensors alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import chain

from lwptv_lightning.layers.layers import Layers, _group
from lwptv_lightning.registry import GRANULARITIES, require_known, require_texts


def layers_from_names(names: Iterable[str], granularity: str = "module") -> Layers:
    """Group tensors into layers by their names alone, without a model.

    The order of the names is kept, and tied weights cannot be seen. Blocks are guessed: modules ``prefix.<int>`` with
    nested names such as ``attn.qkv.weight`` are blocks if two or more under that prefix have one in common.
    `trace_layers` asks for a common class instead: numbered siblings of different classes whose tensors have like
    names, or of one class whose tensors have none in common, are seen differently.

    Args:
        names: State-dict names of the tensors, in the order wanted.
        granularity: ``"block"``, ``"module"`` or ``"tensor"``.

    Returns:
        Layers that hold each name exactly once.

    Raises:
        UnknownNameError: ``granularity`` is none of the three.
        ValueError: A name is given twice.

    Example:
        >>> names = ["cls_token", "blocks.0.norm.weight", "blocks.0.fc.weight", "blocks.1.norm.weight"]
        >>> layers_from_names(names).names
        ('cls_token', 'blocks.0.norm', 'blocks.0.fc', 'blocks.1.norm')
        >>> layers_from_names(names, "block").names
        ('cls_token', 'blocks.0', 'blocks.1')
    """
    require_known("granularity", granularity, GRANULARITIES)
    names = require_texts("names", names, "the names of tensors")
    blocks = _blocks_among(names) if granularity == "block" else set()
    return _group(([name] for name in names), granularity, blocks)


def _blocks_among(names: Iterable[str]) -> set[str]:
    """Return the paths of the repeated modules, as `layers_from_names` guesses them."""
    nested: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        parts = name.split(".")
        for depth, part in enumerate(parts[:-2]):  # a tensor in a child of the block has two more parts
            if part.isdecimal():
                nested[".".join(parts[:depth])][part].append(".".join(parts[depth + 1 :]))
    return {
        f"{path}.{number}".lstrip(".")
        for path, numbered in nested.items()
        if max(Counter(chain.from_iterable(numbered.values())).values()) > 1
        for number in numbered
    }

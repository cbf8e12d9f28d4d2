"""How much memory a merge takes at most besides its result and the mapped files, and limits on that."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from lwptv_lightning.engine import Execution, Stream
from lwptv_lightning.layers import Layers
from lwptv_lightning.registry import shown
from lwptv_lightning.rules import MergeRule

Rules: TypeAlias = Mapping[str, MergeRule[Any]]

_BLOCKS = 16
"""Blocks held at once: the results of operations on one."""
_SEARCH_OF_A_TASK = 12 << 20
"""Bytes that a search for a threshold takes for each task: bins, and a sample."""
_COPIES_OF_A_TASK = 20
"""Copies of one task's tensor, where tasks are worked on one by one."""
_COPIES_OF_A_LAYER = 6
"""Copies of a layer's stacks while element pruning ranks them together, their order among them."""
_COPIES_OF_A_STACK = 14
"""Copies of a stack that rules which see whole tensors hold, float64 and singular vectors among them."""
_SHARE_OF_MEMO = 8
"""The part of a machine's memory, or a device's, that what is remembered may take where there is no limit."""
_NOT_TOLD = 1 << 62
_ASSUMED = 1 << 33
"""Memory of a machine that does not tell, to what is remembered."""
_LIMITS_OF_CONTAINERS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class MemoryLimitError(ValueError):
    """A merge that cannot be done within ``max_memory``."""


def require_memory(limit: int, rules: Rules, stream: Stream, thinned: Layers | None = None) -> None:
    """Raise unless a merge fits into a limit of bytes; see `needed_memory`.

    Raises:
        MemoryLimitError: It does not; names the tensor that takes most.
    """
    needed = needed_memory(rules, stream, thinned)
    if needed > limit:
        largest = max(stream.names, key=lambda name: (bytes_of_tensor(rules[name], stream, name), stream.numel(name)))
        rule = rules[largest].name
        raise MemoryLimitError(
            f"max_memory is {limit / 1e6:,.0f} MB, but merging {len(stream.tasks)} tasks by {rule!r} takes up to "
            f"{needed / 1e6:,.0f} MB besides the result; the largest tensor is {shown(largest)} of shape "
            f"{stream.shapes[largest]}. Expected a larger limit, or a rule that works on blocks."
        )


def needed_memory(rules: Rules, stream: Stream, thinned: Layers | None = None) -> int:
    """Return how many bytes a merge takes at most.

    Args:
        rules: The rule of each of the stream's tensors.
        stream: The task vectors.
        thinned: Layers whose elements are ranked together.
    """
    tasks, itemsize = len(stream.tasks), stream.dtype.itemsize
    needed = _BLOCKS * (stream.execution.block_bytes or stream.execution.usual_block_bytes)
    needed += max(bytes_of_tensor(rules[name], stream, name) for name in stream.names)
    if any(rule.surveys_model() for rule in rules.values()):
        needed += tasks * _SEARCH_OF_A_TASK
    if thinned is not None:
        layer = max(sum(map(stream.numel, layer.tensors)) for layer in thinned)
        needed += _COPIES_OF_A_LAYER * tasks * layer * itemsize
    return needed


def threads_within(each: int, execution: Execution) -> int:
    """Return how many threads may merge at a time: fewer than usual where each may hold many bytes.

    The limit is the execution's, or a quarter of the machine's memory.
    """
    usual = execution.threads
    if usual == 1 or each == 0:
        return usual
    limit = _physical_memory() // 4 if execution.max_memory is None else execution.max_memory
    return max(min(usual, limit // each), 1)


def room_to_remember(rules: Rules, stream: Stream, thinned: Layers | None = None) -> int:
    """Return how many bytes what a merge remembers may take: what its limit leaves, or an eighth of the memory.

    Without a limit, several processes divide the eighth among them, of the machine's memory or of the device's.
    """
    execution = stream.execution
    if execution.max_memory is None:
        memory = _memory_of(execution.device)
        return (_ASSUMED if memory == _NOT_TOLD else memory) // (_SHARE_OF_MEMO * execution.ranks.size)
    if not stream.names:
        return execution.max_memory
    each = max(bytes_of_tensor(rules[name], stream, name) for name in stream.names)
    others = threads_within(each, execution) - 1
    return max(execution.max_memory - needed_memory(rules, stream, thinned) - others * each, 0)


def bytes_of_tensor(rule: MergeRule[Any], stream: Stream, name: str) -> int:
    """Return what a tensor's stack takes, and a rule that sees whole tensors; one that sees blocks takes nothing."""
    size, tasks = stream.numel(name) * stream.dtype.itemsize, len(stream.tasks)
    own = {"element": 0, "task": _COPIES_OF_A_TASK * size, "tensor": _COPIES_OF_A_STACK * tasks * size}[rule.unit]
    return own + stream.held_bytes(name)


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return _physical_memory()


def _physical_memory() -> int:
    """Return the bytes of the machine's memory, or of its container's; many where the system does not tell."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _NOT_TOLD
    return min(memory, *map(_limit_in, _LIMITS_OF_CONTAINERS))


def _limit_in(file: str) -> int:
    try:
        return int(Path(file).read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return _NOT_TOLD

"""`Execution`: where and how a merge is computed; never what."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.engine.fused import kernels_exist
from lwptv_lightning.engine.memo import Memo, Once, anew
from lwptv_lightning.engine.ranks import ALONE, Ranks
from lwptv_lightning.functional import device_of
from lwptv_lightning.registry import parse_bytes, require_kind

CPU = torch.device("cpu")
_CACHE_BYTES = 1 << 21
"""Size of a block of all tasks together on the CPU: with what is computed from it, it stays in the cache."""
_DEVICE_BYTES = 1 << 28
"""Size of a block on an accelerator, where starting an operation costs more than reading memory again."""
_FUSED_BYTES = 1 << 24
"""Size of a block for kernels: one of 8 tasks takes about a millisecond."""
_THREAD_BYTES = 1 << 26
"""What a thread's blocks take at most, with those that wait for others."""
_PAYS = 1 << 25
"""Values of task vectors from which on kernels save more than it takes to load them, a second or so."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how a merge is computed. But for a device's own rounding, nothing here changes a result.

    Args:
        device: Where to compute, and where results are; a `torch.device`, or its name such as ``"cuda"``.
        ranks: The processes that divide the work among them, which must all make the same calls then.
        max_memory: What a merge may hold in memory besides its result and the mapped files, in bytes, or as text such
            as ``"512MB"``. Rules that work on blocks need little; it concerns those that see whole tensors.
        compiled: Whether compiled kernels are used where there are some, which is on the CPU in float32; ``None`` is
            for models so large that it pays, where numba is installed.
        block_bytes: Size of the blocks in which rules read the task vectors; by default what suits the device.
        memo: Remembers decompositions for all merges that are given it; its limit is set by each of them. It changes
            no bit, and takes no part in equality. ``None`` is one for a merge that asks for the same twice.

    Raises:
        ValueError: A size is no number of bytes above 0, or there is no such device.
        TypeError: Something is of the wrong kind.
        ImportError: ``compiled`` is true, and numba is not installed.

    Example:
        >>> Execution(device="cpu", max_memory="1.5KiB").max_memory
        1536
    """

    device: torch.device = CPU
    ranks: Ranks = ALONE
    max_memory: int | None = None
    compiled: bool | None = None
    block_bytes: int | None = None
    memo: Memo | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", device_of("device", self.device))
        require_kind("ranks", self.ranks, Ranks, "Ranks, of the processes that work together")
        require_kind("memo", self.memo, Memo | None, "a Memo")
        require_kind("compiled", self.compiled, bool | None, "true, false or None")
        for name in ("max_memory", "block_bytes"):
            if (size := getattr(self, name)) is not None:
                object.__setattr__(self, name, parse_bytes(name, size))
        if self.compiled and not kernels_exist():
            raise ImportError("compiled=True needs numba, which is not installed: pip install numba.")

    @property
    def once(self) -> Once:
        """Computes what a pure function makes of a tensor, or remembers it."""
        return anew if self.memo is None else self.memo

    @property
    def threads(self) -> int:
        """How many threads work on their own blocks: as many as torch may use and memory allows; one for a device."""
        if self.device.type != "cpu":
            return 1
        allowed = torch.get_num_threads() if self.max_memory is None else self.max_memory // _THREAD_BYTES
        return max(min(torch.get_num_threads(), allowed), 1)

    def compiles(self, values: int, like: Tensor) -> bool:
        """Tell whether compiled kernels read task vectors of a number of values, those of all tasks, like a tensor."""
        if self.compiled is False or like.device.type != "cpu" or like.dtype != torch.float32:
            return False
        return bool(self.compiled) or (values >= _PAYS and kernels_exist())

    @property
    def fused_bytes(self) -> int:
        """The size of a block of all tasks together that a kernel works through, tile by tile."""
        return _FUSED_BYTES

    @property
    def usual_block_bytes(self) -> int:
        """The size of a block that suits the device."""
        return _CACHE_BYTES if self.device.type == "cpu" else _DEVICE_BYTES

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Compute products in float32 although a script asked for fewer bits, or runs in autocast.

        The setting belongs to the process. Threads may be inside together; the last one out puts it back.
        """
        with _FULL_PRECISION, ExitStack() as stack:
            for kind in {"cpu", self.device.type}:
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield


class _FullPrecision:
    """Holds torch's setting of float32 products at full precision while any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._lowered: dict[Any, str] = {}

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                backends: Any = torch.backends
                settings = (backends.cuda.matmul, backends.mkldnn.matmul)
                precisions = {setting: setting.fp32_precision for setting in settings}
                self._lowered = {setting: value for setting, value in precisions.items() if value not in _FULL}
                for setting in self._lowered:
                    setting.fp32_precision = _FULL[0]
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for setting, value in self._lowered.items():
                    setting.fp32_precision = "none"  # which takes over what holds for all backends
                    if setting.fp32_precision != value:
                        setting.fp32_precision = value


_FULL = ("ieee", "none")
_FULL_PRECISION = _FullPrecision()

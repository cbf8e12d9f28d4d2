"""Several processes that merge one model: who reads and merges which tensor, broadcasts, and errors shared by all.

Every exchange carries either each process's value or the error that kept it from having one. So a process that
fails answers the exchange which the others wait in, whichever it is, and all stop with its error.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lwptv_lightning.checkpoints import TensorHeader

Value = TypeVar("Value")


class RankFailedError(RuntimeError):
    """Names the process on which the error arose that all processes stop with; it is that error's cause."""


@dataclass(frozen=True)
class Ranks:
    """The processes that work together; by default this one alone.

    Attributes:
        rank: The number of this process.
        size: How many there are.

    Example:
        >>> ranks = Ranks.current()
        >>> ranks.size, ranks.exchange("mine")
        (1, ['mine'])
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Return the processes of the default process group, or this one where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def exchange(self, value: Value) -> list[Value]:
        """Return every process's value, in their order.

        Raises:
            Exception: That of the first process which failed inside `sharing_errors`, with a `RankFailedError` as
                its cause.
        """
        return self._gather(value, None)

    @contextmanager
    def sharing_errors(self) -> Iterator[None]:
        """Raise an error that one process meets inside the block on all of them, and leave it together.

        Every process must enter the block. Inside it, processes may meet in `exchange` alone.
        """
        with self.telling_errors():
            yield
            self.exchange(None)

    @contextmanager
    def telling_errors(self) -> Iterator[None]:
        """Raise an error that this process meets inside the block also on those that wait in `exchange`, or will.

        Without an error nothing is exchanged, so that not every process need enter the block.
        """
        try:
            yield
        except Exception as error:
            if not hasattr(error, _SHARED):
                setattr(error, _SHARED, True)  # blocks may be nested
                self._gather(None, error)
            raise

    def spread(
        self, owner: Mapping[str, int], own: Iterable[tuple[str, Tensor]], empty: Callable[[str], Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that each process makes on every process, in the order of ``owner``, name to rank.

        No tensor is yielded before all are made. One process alone makes them as they are asked for. ``empty`` makes
        the tensor of a name into which another process's is received.
        """
        if self.size == 1:
            yield from own
            return
        with self.sharing_errors():
            made = dict(own)
        for name, source in owner.items():
            yield name, self.broadcast(made.pop(name) if name in made else empty(name), source)

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Return the tensor that the process ``source`` has; the other ones give one of the same shape and dtype."""
        if self.size == 1 or not tensor.numel():
            return tensor
        # As bytes, since backends do not know every dtype.
        data = tensor.contiguous().reshape(-1).view(torch.uint8).to(_backend_device(tensor))
        dist.broadcast(data, source)
        return data.to(tensor.device).view(tensor.dtype).reshape(tensor.shape)

    def _gather(self, value: Any, error: Exception | None) -> list[Any]:
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, (value, None if error is None else _picklable(error)))
        for rank, (_, failure) in enumerate(gathered):
            if failure is not None and error is None:
                setattr(failure, _SHARED, True)
                raise failure from RankFailedError(f"process {rank} of {self.size} failed.")
        return [value for value, _ in gathered]


ALONE = Ranks()
"""A process that works by itself, whatever process group there is."""

_SHARED = "_lwptv_shared"


def divide(groups: Sequence[Sequence[str]], headers: Mapping[str, TensorHeader], ranks: int) -> dict[str, int]:
    """Divide groups of tensors over processes so that each has about as many bytes, and return name to rank.

    From the largest group to the smallest, each goes to the process with the fewest bytes so far, and of equal ones
    to the first; so every process finds the same.

    Example:
        >>> headers = {name: TensorHeader((n,), torch.float32) for name, n in {"a": 5, "b": 3, "c": 4}.items()}
        >>> divide([["a"], ["b"], ["c"]], headers, ranks=2)
        {'a': 0, 'b': 1, 'c': 1}
    """
    sizes = [sum(headers[name].nbytes for name in group) for group in groups]
    load = [0] * ranks
    chosen = [0] * len(groups)
    for index in sorted(range(len(groups)), key=lambda index: -sizes[index]):
        chosen[index] = load.index(min(load))
        load[chosen[index]] += sizes[index]
    return {name: rank for group, rank in zip(groups, chosen, strict=True) for name in group}


def _backend_device(tensor: Tensor) -> torch.device:
    if dist.get_backend() == "nccl":
        return tensor.device if tensor.is_cuda else torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _picklable(error: Exception) -> Exception:
    """Return an error itself, or its text where it would not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error's own code may fail in any way whatever
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error

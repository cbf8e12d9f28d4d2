"""Which batches of a loader each of several processes evaluates, so that together they evaluate what one would.

A batch is never taken apart: whatever samplers, batch samplers and collate functions make of a data set, the batches of
one process are dealt out, each to one process. Nothing is known beforehand of loaders without a sampler; of these each
process evaluates its own, and what they were tells afterwards whether all had the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, zip_longest
from math import ceil
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Subset
from torch.utils.data.distributed import DistributedSampler

from lwptv_lightning.engine import ALONE, Ranks
from lwptv_lightning.evaluation.loaders import require_loaders


@dataclass(frozen=True)
class Replicas:
    """The processes that divide a loader's batches; those that hold one model together are one replica.

    Attributes:
        ranks: All processes.
        rank: The number of this process's replica.
        size: How many replicas there are.
    """

    ranks: Ranks = ALONE
    rank: int = 0
    size: int = 1

    def exchange(self, value: Any) -> list[Any]:
        """Return the value of each replica, in their order."""
        values = dict(reversed(self.ranks.exchange((self.rank, value))))
        return [values[rank] for rank in sorted(values)]


class Share(DistributedSampler[Any]):
    """Yields what one process loads of a loader's batches: lists of positions, or a position where nothing is collated.

    As many on each process, so that models whose processes must run together can: the first batch is repeated, which
    does not count. Lightning leaves a loader with a `DistributedSampler` as it is.

    Args:
        batches: All batches of the loader, in the order of one process.
        replicas: The processes that share them.
        length: How many to yield, at least this process's share.
    """

    def __init__(self, batches: Sequence[Any], replicas: Replicas, length: int) -> None:
        super().__init__(batches, replicas.size, replicas.rank, shuffle=False)  # type: ignore[arg-type]
        self.batches = batches
        self.length = length
        self._starts = list(accumulate((len(_as_list(batch)) for batch in batches), initial=0))

    def __iter__(self) -> Iterator[Any]:
        own = self.batches[self.rank :: self.num_replicas]
        return iter([*own, *[self.batches[0]] * (self.length - len(own))])

    def __len__(self) -> int:
        return self.length

    def number(self, batch_idx: int) -> int | None:
        """Return the place among all batches of this process's one; ``None`` where it is there to fill up."""
        number = batch_idx * self.num_replicas + self.rank
        return number if number < len(self.batches) else None

    def positions(self, number: int) -> list[Any]:
        """Return where the samples of a batch are in the data set."""
        return _as_list(self.batches[number])

    def start(self, number: int) -> int:
        """Return how many samples there are in the batches before one."""
        return self._starts[number]


class Stream:
    """Any loader, which tells how many batches it gives by the time that the last one of them is there.

    Args:
        loader: What yields batches.
        sized: Whether to have the loader's length, which only a sequence's is sure to be right; a trainer stops there.
    """

    total: int | None = None

    def __init__(self, loader: Any, *, sized: bool) -> None:
        self.loader = loader
        self.sized = sized

    def __iter__(self) -> Iterator[Any]:
        self.total = None
        ahead: list[Any] = []
        number = 0
        for batch in self.loader:
            if ahead:
                number += 1
                yield ahead.pop()
            ahead.append(batch)
        self.total = number + len(ahead)
        yield from ahead

    def __len__(self) -> int:
        if not self.sized:
            raise TypeError(f"nobody knows how many batches a {type(self.loader).__name__} gives.")
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)


def share_of(loader: Any) -> Share | None:
    """Return a loader's share, where it has one."""
    sampler = getattr(loader, "sampler", None)
    return sampler if isinstance(sampler, Share) else None


def is_located(loader: Any) -> bool:
    """Tell whether a sampler says which samples the batches of a loader are of."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader).__iter__ is DataLoader.__iter__
    )


def share_loaders(
    loaders: object, replicas: Replicas, limit: float | None = None, *, fixed: bool = False
) -> dict[str, Any]:
    """Return loaders of which each process evaluates its share; all processes call this, before a pass.

    Args:
        loaders: Name to loader, as `require_loaders` wants them.
        replicas: The processes.
        limit: How many batches of each one process would take, a whole number or a fraction; all by default.
        fixed: Draw the order of the batches now also for one process alone, so that each pass has the same.

    Raises:
        ValueError: The processes cannot evaluate what one would; it names the loader.
    """
    with replicas.ranks.sharing_errors():
        named = require_loaders(loaders)
        limit = None if limit == 1.0 and isinstance(limit, float) else limit
        divided = fixed or replicas.size > 1
        drawn = {
            name: _Drawn.of(name, loader, limit)
            for name, loader in named.items()
            if is_located(loader) and (divided or _has_own_sampler(loader))
        }
        everyones = replicas.exchange(drawn)
        shared: dict[str, Any] = {}
        for name, loader in named.items():
            _require_divided_as_run(name, loader, replicas)
            if name in drawn:
                batches = _all_batches(name, [drawn[name] for drawn in everyones], limit)
                shared[name] = _with_share(loader, _limited(name, batches, replicas, limit))
            else:
                shared[name] = loader if is_located(loader) else _as_stream(name, loader, replicas, limit)
        return shared


def must_meet(loaders: Mapping[str, Any], replicas: Replicas, model: nn.Module) -> bool:
    """Tell whether processes that run a sharded model together may get unequal numbers of batches.

    Raises:
        ValueError: There are several processes, and a loader is not divided among them.
    """
    if replicas.size == 1:
        return False
    for name, loader in loaders.items():
        if share_of(loader) is None and not isinstance(loader, Stream):
            raise ValueError(
                f"loader {name!r} is not divided among {replicas.size} processes, which happens in setup: call "
                "super().setup(stage) where you override it, and evaluate by trainer.validate or trainer.test."
            )
    uneven = any(isinstance(loader, Stream) for loader in loaders.values())
    return uneven and any(isinstance(tensor, DTensor) for tensor in model.parameters())


@dataclass(frozen=True)
class _Drawn:
    """What one process would load of a loader, and of what."""

    batches: list[Any]
    samples: int | None
    subset: Any
    size: int | None
    """How many samples are in a batch, where PyTorch's samplers deal them out one by one and batch them."""

    @classmethod
    def of(cls, name: str, loader: DataLoader[Any], limit: float | None) -> _Drawn:
        sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        try:
            length = len(sampler)
        except (TypeError, NotImplementedError):
            length = None
        endless = limit if isinstance(limit, int) else None  # so it may be
        bound = endless if length is None else length + 1
        batches = [list(batch) if loader.batch_sampler is not None else batch for batch in islice(iter(sampler), bound)]
        if length is not None and len(batches) > length:
            raise ValueError(
                f"loader {name!r}: its {type(sampler).__name__} gives more than the {length} batches of its length, "
                "and a trainer takes no more than these; correct its __len__."
            )
        data = loader.dataset
        samples = len(data) if hasattr(data, "__len__") else None
        dealt = isinstance(loader.sampler, DistributedSampler) and type(loader.batch_sampler) is BatchSampler
        subset = list(data.indices) if isinstance(data, Subset) else None
        return cls(batches, samples, subset, loader.batch_size if dealt else None)


def _all_batches(name: str, drawn: Sequence[_Drawn], limit: float | None) -> list[Any]:
    """Return the batches of one process: those of any where all draw the same samples, else those of all together."""
    first = drawn[0]
    if any((each.samples, each.subset) != (first.samples, first.subset) for each in drawn):
        sizes = [each.samples for each in drawn]
        raise ValueError(
            f"loader {name!r} has another data set on each process, of {sizes} samples; give all of them the whole "
            "data set, whose batches are divided among them."
        )
    flat = [sorted(repr(item) for batch in each.batches for item in _as_list(batch)) for each in drawn]
    if not flat[0]:
        raise ValueError(f"loader {name!r} gives no batch.")
    if all(items == flat[0] for items in flat):
        return first.batches
    # Each process draws its own samples, some of them twice to fill up.
    own = [each.batches for each in drawn] if first.size is None else [list(chain(*each.batches)) for each in drawn]
    seen: set[str] = set()
    batches = []
    for batch in (batch for together in zip_longest(*own) for batch in together):
        new = [item for item in ([] if batch is None else _as_list(batch)) if repr(item) not in seen]
        seen.update(map(repr, new))
        if new:
            batches.append(new if isinstance(batch, list) else batch)
    if len(seen) != first.samples:
        raise ValueError(
            f"loader {name!r}: the samplers of {len(drawn)} processes give {len(seen)} of the {first.samples} samples. "
            "Use drop_last=False; a sampler that draws at random needs a generator with the same seed on each process."
        )
    if first.size is not None:
        return [batches[start : start + first.size] for start in range(0, len(batches), first.size)]
    if limit is not None:
        raise ValueError(
            f"loader {name!r} has samplers of a division of your own, so that nobody can tell which batches a limit "
            f"of {limit} leaves; take all of them."
        )
    return batches


def _limited(name: str, batches: list[Any], replicas: Replicas, limit: float | None) -> Share:
    """Return a share of as many batches as one process would take."""
    if limit is not None:
        wanted = min(limit, len(batches)) if isinstance(limit, int) else int(limit * len(batches))
        if not wanted:
            raise ValueError(f"loader {name!r}: a limit of {limit} of {len(batches)} batches leaves none.")
        batches = batches[: int(wanted)]
    length = rounds = ceil(len(batches) / replicas.size)
    if isinstance(limit, float):
        # The trainer takes the fraction of what it is given; of so many it is the right number.
        while int(length * limit) < rounds:
            length += 1
    return Share(batches, replicas, length)


def _with_share(loader: DataLoader[Any], share: Share) -> DataLoader[Any]:
    """Return a copy of a loader, whatever its class, that loads a share in order."""
    copied = copy.copy(loader)
    attributes = {"sampler": share, "in_order": True, "persistent_workers": False, "_iterator": None}
    # Not as attributes, which a loader would refuse.
    vars(copied).update(attributes if loader.batch_sampler is None else attributes | {"batch_sampler": share})
    return copied


def _as_stream(name: str, loader: Any, replicas: Replicas, limit: float | None) -> Stream:
    if limit is not None and replicas.size > 1:
        raise ValueError(
            f"loader {name!r} has no sampler, so that {replicas.size} processes cannot tell which batches a limit of "
            f"{limit} leaves; take all of them, or give a loader of a data set with a length."
        )
    if isinstance(loader, Stream):
        return loader
    return Stream(loader, sized=isinstance(loader, Sequence) or isinstance(limit, float))


def _has_own_sampler(loader: DataLoader[Any]) -> bool:
    """Tell whether a sampler is not PyTorch's, so that its length may be wrong or unknown."""
    return any(
        not type(sampler).__module__.startswith("torch.utils.data")
        for sampler in (loader.batch_sampler, loader.sampler)
        if sampler is not None
    )


def _require_divided_as_run(name: str, loader: Any, replicas: Replicas) -> None:
    """Refuse a `DistributedSampler` for other processes than there are."""
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", getattr(loader, "sampler", None))
    if isinstance(sampler, DistributedSampler) and not isinstance(sampler, Share):
        given, run = (sampler.num_replicas, sampler.rank), (replicas.size, replicas.rank)
        if given != run:
            raise ValueError(
                f"loader {name!r} has a DistributedSampler of num_replicas={given[0]}, rank={given[1]}, where "
                f"num_replicas={run[0]}, rank={run[1]} evaluates; samples would not be counted. Leave it out."
            )


def _as_list(batch: Any) -> list[Any]:
    return batch if isinstance(batch, list) else [batch]

"""The first samples of loaders as one batch each, the same for any number of processes and any size of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from lwptv_lightning.evaluation.inputs import count_samples, fingerprints, inputs_of, take_samples
from lwptv_lightning.evaluation.interface import naming_loader
from lwptv_lightning.evaluation.loaders import with_own_workers
from lwptv_lightning.evaluation.shares import Replicas, Share, _all_batches, _Drawn, _with_share, is_located


def first_samples(
    module: Any, loaders: Mapping[str, Any], count: int, replicas: Replicas, seed: int = 0
) -> dict[str, Any]:
    """Return the first samples of each loader as one batch, which is read once and then the same on all processes.

    Where a sampler says which samples these are, one process reads them, and ``drop_last`` drops none. A shuffled
    loader without a generator of its own is shuffled by ``seed``. Of other loaders each process reads its own, and
    what several of them have counts once.

    Args:
        module: A `MergeModule`, which knows where a batch has its inputs.
        loaders: Name to loader.
        count: How many samples of each; of a loader with fewer, all.
        replicas: The processes, which must all call this.
        seed: Of the order of shuffled loaders.

    Raises:
        ValueError: A loader gives no sample, or batches that do not fit together.
    """
    ranks = replicas.ranks
    with ranks.sharing_errors():
        located = {name: loader for name, loader in loaders.items() if _is_dealt(loader)}
        drawn = {name: _Drawn.of(name, _ordered(loader, seed), count) for name, loader in located.items()}
        everyones = ranks.exchange(drawn)
        own = {}
        for number, (name, loader) in enumerate(loaders.items()):
            if name in located:
                if number % ranks.size == ranks.rank:
                    batches = _all_batches(name, [each[name] for each in everyones], None)
                    positions = list(chain.from_iterable(batches))[:count]
                    own[name] = _first_of(module, name, _with_share(loader, Share([positions], Replicas(), 1)), count)
            elif not is_located(loader) or number % ranks.size == ranks.rank:
                own[name] = _first_of(module, name, loader, count)
        gathered = ranks.exchange(own)
        read = {name: [each[name] for each in gathered if name in each] for name in loaders}
        return {name: _merged(module, name, batches, count) for name, batches in read.items()}


def _is_dealt(loader: Any) -> bool:
    """Tell whether samplers deal out single samples, which are then collated."""
    return is_located(loader) and loader.batch_sampler is not None


def _ordered(loader: DataLoader[Any], seed: int) -> DataLoader[Any]:
    """Return a loader that is shuffled by a seed, where nothing else says how it is shuffled."""
    sampler = loader.sampler
    if type(loader.batch_sampler) is not BatchSampler or type(sampler) is not RandomSampler:
        return loader
    if sampler.replacement or sampler.generator is not None:
        return loader
    order = torch.randperm(len(sampler.data_source), generator=torch.Generator().manual_seed(seed))
    return _with_share(loader, Share([order[: sampler.num_samples].tolist()], Replicas(), 1))


def _first_of(module: Any, name: str, loader: Any, count: int) -> Any:
    """Return the first samples of what one process reads of a loader, or ``None``."""
    batches, left = [], count
    for batch in with_own_workers(loader):
        with naming_loader(name):
            size = _samples(module, batch)
        batches.append(batch if size <= left else take_samples(batch, 0, left))
        left -= size
        if left <= 0:
            break
    return joined(name, batches) if batches else None


def _merged(module: Any, name: str, read: Iterable[Any], count: int) -> Any:
    """Return what processes read as one batch: one sample of each in turn, without those that were there before."""
    given = [batch for batch in read if batch is not None]
    if not given or not any(_samples(module, batch) for batch in given):
        raise ValueError(f"loader {name!r} gives no sample.")
    if len(given) == 1:
        return given[0]
    seen: set[int] = set()
    samples = []
    for together in zip_longest(*(_each(module, batch) for batch in given)):
        for sample in (each for each in together if each is not None):
            if (number := int(fingerprints(inputs_of(module, sample))[0])) not in seen:
                seen.add(number)
                samples.append(sample)
    return joined(name, samples[:count])


def _each(module: Any, batch: Any) -> Iterator[Any]:
    for index in range(_samples(module, batch)):
        yield take_samples(batch, index, index + 1)


def _samples(module: Any, batch: Any) -> int:
    return count_samples(inputs_of(module, batch))


def joined(name: str, batches: list[Any]) -> Any:
    """Return batches of one loader as one: tensors one after the other, wherever in dicts, lists and tuples they are.

    Raises:
        ValueError: Their shapes differ by more than the number of samples; it names the loader.

    Example:
        >>> joined("id/a", [(torch.zeros(2, 3), torch.tensor([0, 1])), (torch.zeros(1, 3), torch.tensor([2]))])[1]
        tensor([0, 1, 2])
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    if isinstance(first, Tensor):
        return _joined_tensors(name, batches)
    if isinstance(first, Mapping) or (hasattr(first, "keys") and hasattr(first, "__getitem__")):
        return {key: joined(name, [batch[key] for batch in batches]) for key in first}
    if is_dataclass(first) and not isinstance(first, type):
        parts = {field.name: joined(name, [getattr(batch, field.name) for batch in batches]) for field in fields(first)}
        return replace(first, **parts)
    if isinstance(first, list | tuple) and not all(isinstance(item, str | int | float) for item in first):
        items = [joined(name, list(parts)) for parts in zip(*batches, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return type(first)(chain.from_iterable(batches)) if isinstance(first, list | tuple) else first


def _joined_tensors(name: str, tensors: list[Tensor]) -> Tensor:
    if not tensors[0].ndim:
        return tensors[0]
    for tensor in tensors:
        if tensor.shape[1:] != tensors[0].shape[1:]:
            shapes = f"{tuple(tensors[0].shape)} and {tuple(tensor.shape)}"
            raise ValueError(
                f"loader {name!r} gives batches of shapes {shapes}, which do not fit together; have it make samples of "
                "one size, such as texts that are padded to one length."
            )
    return torch.cat(tensors)

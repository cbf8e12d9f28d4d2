"""Parts of ID sets, drawn by a seed: halves to choose and to report on, samples to learn on, growing shares."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset, SubsetRandomSampler

from lwptv_lightning.evaluation import loader_like

FEWEST = 4
"""Samples of a set below which nothing is chosen by it."""


def positions_of(loader: Any) -> Sequence[int] | None:
    """Return where the samples of a loader are in its data set, in any order; ``None`` where nobody knows."""
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        return None
    if type(loader.batch_sampler) is not BatchSampler:
        return None
    sampler: Any = loader.sampler
    if type(sampler) is SubsetRandomSampler:
        return list(sampler.indices)
    if type(sampler) is SequentialSampler:
        return range(len(sampler.data_source))
    if type(sampler) is RandomSampler and not sampler.replacement and len(sampler) == len(sampler.data_source):
        return range(len(sampler.data_source))
    return None


def portion(loader: DataLoader[Any], positions: Sequence[int]) -> DataLoader[Any]:
    """Return a loader of some samples of another one, in the order of the data set, without shuffling."""
    return _in_order(loader, sorted(positions))


def _in_order(loader: DataLoader[Any], positions: Sequence[int]) -> DataLoader[Any]:
    return loader_like(loader, Subset(loader.dataset, positions))


def drawn(name: str, loader: Any, seed: int) -> list[int]:
    """Return the positions of a loader's samples in a random order, its own for each name and seed.

    Raises:
        ValueError: Nobody knows which samples the loader gives.
    """
    positions = positions_of(loader)
    if positions is None:
        raise ValueError(
            f"loader {name!r} cannot be divided, since its samples cannot be told beforehand (a "
            f"{type(loader).__name__}): give a DataLoader of a data set with a length, without a sampler of its own."
        )
    generator = torch.Generator().manual_seed((seed * 1_000_003 + zlib.crc32(name.encode(errors="replace"))) % 2**63)
    return [positions[place] for place in torch.randperm(len(positions), generator=generator).tolist()]


def divided(
    loaders: Mapping[str, Any], first: Mapping[str, int], seed: int
) -> tuple[dict[str, DataLoader[Any]], dict[str, DataLoader[Any]]]:
    """Divide loaders: in the first ones so many samples of each, the rest in the second ones.

    Example:
        >>> loader = DataLoader(range(10), batch_size=4)
        >>> some, rest = divided({"id/a": loader}, {"id/a": 3}, 0)
        >>> len(some["id/a"].dataset), sorted([*some["id/a"].dataset, *rest["id/a"].dataset]) == list(range(10))
        (3, True)
    """
    orders = {name: drawn(name, loader, seed) for name, loader in loaders.items()}
    some = {name: portion(loaders[name], order[: first[name]]) for name, order in orders.items()}
    return some, {name: portion(loaders[name], order[first[name] :]) for name, order in orders.items()}


def mixed(loaders: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return loaders of the same samples in a random order, always the same; those that cannot be divided as they are.

    Folders of images are sorted by class, and a batch of one class is no sample of the set.
    """
    known = {name: positions_of(loader) is not None for name, loader in loaders.items()}
    return {
        name: _in_order(loader, drawn(name, loader, seed)) if known[name] else loader
        for name, loader in loaders.items()
    }


def halves(loaders: Mapping[str, Any], seed: int) -> tuple[dict[str, DataLoader[Any]], dict[str, DataLoader[Any]]]:
    """Divide ID sets in two, the first half to choose by and the second to report on.

    Raises:
        ValueError: A set has too few samples, or cannot be divided.
    """
    require_enough(loaders, "no validation sets are given, so that each ID set is divided in two")
    return divided(loaders, {name: len(positions_of(loader) or ()) // 2 for name, loader in loaders.items()}, seed)


def require_enough(loaders: Mapping[str, Any], why: str) -> None:
    """Raise a `ValueError` that names the sets which have fewer than a few samples, as far as that can be told."""
    counts = {name: count_of(loader) for name, loader in loaders.items()}
    few = [f"{name!r} has {count}" for name, count in counts.items() if count is not None and count < FEWEST]
    if few:
        raise ValueError(f"{', '.join(few)} samples, and a choice takes {FEWEST} or more of each set: {why}.")


def count_of(loader: Any) -> int | None:
    """Return how many samples a loader gives; ``None`` where nobody knows."""
    positions = positions_of(loader)
    if positions is not None:
        return len(positions)
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError, NotImplementedError):
        return None


class Shares:
    """Growing shares of validation samples: each holds the smaller ones, and they are the same for all candidates.

    Args:
        loaders: Name to loader.
        seed: Of the order in which samples join.
        least: Samples of each set that every share has, or all of it.
    """

    def __init__(self, loaders: Mapping[str, Any], seed: int = 0, *, least: int = 8) -> None:
        self._loaders = dict(loaders)
        self._seed = seed
        self._least = least

    @property
    def undivided(self) -> list[str]:
        """The names of the loaders that cannot be divided."""
        return [name for name, loader in self._loaders.items() if positions_of(loader) is None]

    def loaders(self, part: float) -> dict[str, Any]:
        """Return loaders of a share; of all samples those that were given."""
        if part >= 1:
            return dict(self._loaders)
        orders = {name: drawn(name, loader, self._seed) for name, loader in self._loaders.items()}
        return {
            name: portion(self._loaders[name], order[: self._size(len(order), part)]) for name, order in orders.items()
        }

    def cost(self, part: float) -> float:
        """Return which fraction of all samples a share has."""
        if part >= 1:
            return 1.0
        sizes = [len(positions_of(loader) or ()) for loader in self._loaders.values()]
        return sum(self._size(size, part) for size in sizes) / max(1, sum(sizes))

    def _size(self, size: int, part: float) -> int:
        return min(size, max(self._least, round(size * part)))


def names_of(loaders: Iterable[str], domain: str) -> list[str]:
    """Return the names of the loaders of a domain."""
    return [name for name in loaders if name.startswith(f"{domain}/")]

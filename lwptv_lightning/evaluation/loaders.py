"""Loaders: their names, their settings, and which samples of a batch count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from torch.utils.data.distributed import DistributedSampler

from lwptv_lightning.registry import LoaderName


def require_loaders(loaders: object) -> dict[str, Any]:
    """Return the loaders by name after a check of names and settings.

    Raises:
        ValueError: No mapping of names to loaders, a name that is not ``id/...`` or ``ood/...``, an empty data set,
            or ``drop_last``, which would leave samples out.
    """
    if not isinstance(loaders, Mapping) or not loaders:
        given = "an empty dict" if isinstance(loaders, Mapping) else f"a {type(loaders).__name__}"
        raise ValueError(f"dataloaders must be a dict such as {{'id/svhn': loader, 'ood/mnist': loader}}, not {given}.")
    for name, loader in loaders.items():
        LoaderName.parse(str(name))
        if getattr(getattr(loader, "batch_sampler", None), "drop_last", False):
            raise ValueError(f"loader {name!r} has drop_last=True, so that samples would not be counted.")
        if hasattr(getattr(loader, "dataset", None), "__len__") and not len(loader.dataset):
            raise ValueError(f"loader {name!r} has an empty data set.")
    return dict(loaders)


def require_pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of a batch that begins with these.

    Raises:
        TypeError: It does not.
    """
    if isinstance(batch, list | tuple) and len(batch) >= 2:
        return batch[0], batch[1]
    raise TypeError(
        f"a batch must be (inputs, targets), not {type(batch).__name__}; override MergeModule.unpack for others."
    )


def sample_positions(loader: Any, batch_idx: int, size: int) -> Tensor:
    """Return the positions in the loader's order of the samples of a batch that count.

    Lightning gives every process the same number of samples by repeating some. A repeated sample's position is not
    below the data set's length, and positions within a batch ascend; so the samples to count are the first ones.

    Args:
        loader: The loader as the trainer uses it.
        batch_idx: The batch's number on this process.
        size: How many samples the batch holds.

    Returns:
        ``(n,)`` with ``n <= size``: positions of the batch's first n samples.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.zeros(5))
        >>> sampler = DistributedSampler(data, num_replicas=2, rank=1, shuffle=False)
        >>> sample_positions(DataLoader(data, batch_size=2, sampler=sampler), batch_idx=1, size=1)
        tensor([], dtype=torch.int64)
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    batch_size = getattr(batch_sampler, "batch_size", None) or getattr(loader, "batch_size", None) or size
    positions = batch_idx * batch_size + torch.arange(size)
    sampler = getattr(batch_sampler, "sampler", getattr(loader, "sampler", None))
    if not isinstance(sampler, DistributedSampler):
        return positions
    positions = positions * sampler.num_replicas + sampler.rank
    return positions[positions < len(sampler.dataset)]  # type: ignore[arg-type]


def is_iterable(loader: Any) -> bool:
    """Tell whether a loader's samples have no positions, so that only its data set can divide them over processes."""
    return isinstance(getattr(loader, "dataset", None), IterableDataset)


def repeated_loaders(first_batches: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the loaders that gave two processes the same first batch.

    Args:
        first_batches: For each process, loader name to a number made of its first batch.

    Example:
        >>> repeated_loaders([{"id/a": 0.5, "id/b": 0.1}, {"id/a": 0.5, "id/b": 0.2}])
        ['id/a']
    """
    seen = Counter(item for batches in first_batches for item in batches.items())
    return sorted({loader for (loader, _), count in seen.items() if count > 1})


def split_name(loader: str) -> tuple[str, str]:
    """Return domain and set of a loader's name; see `LoaderName.parse`."""
    name = LoaderName.parse(loader)
    return name.domain, name.name

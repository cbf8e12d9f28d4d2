"""Named ID and OOD loaders."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lwptv_lightning.registry import (
    DOMAINS,
    LoaderName,
    UnknownNameError,
    require_groups_apart,
    require_kind,
    require_whole,
)


class EvaluationSuite(LightningDataModule):
    """ID and OOD sets to validate, test or predict on.

    Several processes count each sample once. Of iterable data sets each process should yield its own share; where all
    yield the same, those of one process count, and a warning says so.

    Args:
        id: Task name to a data set or loader of that task's domain.
        ood: Name to a data set or loader of a domain that no task was tuned on. ``"<group>/<name>"``, also of a task,
            puts a set into a group, which has an average of its own.
        validation: Name of an ID set to other samples of its domain, on which choices are made and statistics measured;
            none of them is reported.
        batch_size: For those given as data sets.
        num_workers: For those given as data sets.

    Attributes:
        loaders: The sets to report, ``{"id/svhn": loader, "ood/mnist": loader}``.
        validation: Those for choices, ``{"id/svhn": loader}``.
        notes: What is to be known of how the sets were made, in sentences.

    Raises:
        ValueError: No set, an empty one, a loader with ``drop_last``, or a name that averages would take or that begins
            with a domain.
        TypeError: Something is neither a data set nor a loader.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> images = TensorDataset(torch.zeros(4, 3, 8, 8), torch.zeros(4).long())
        >>> list(EvaluationSuite(id={"svhn": images}, ood={"mnist": images}).loaders)
        ['id/svhn', 'ood/mnist']
    """

    def __init__(
        self,
        id: Mapping[str, Dataset[Any] | DataLoader[Any]],
        ood: Mapping[str, Dataset[Any] | DataLoader[Any]] | None = None,
        *,
        validation: Mapping[str, Dataset[Any] | DataLoader[Any]] | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        validation = {} if validation is None else validation
        for group, sets in (("id", id), ("ood", {} if ood is None else ood), ("validation", validation)):
            require_kind(group, sets, Mapping, "a mapping of names to data sets or loaders")
            for name in sets:
                _require_without_domain(group, str(name))
        require_whole("batch_size", batch_size, 1)
        require_whole("num_workers", num_workers, 0)
        groups = zip(DOMAINS, (id, ood or {}), strict=True)
        named = {f"{domain}/{name}": data for domain, sets in groups for name, data in sets.items()}
        self.loaders = {name: _as_loader(name, data, batch_size, num_workers) for name, data in named.items()}
        require_loaders(self.loaders)
        for name in validation:
            if LoaderName.parse(f"id/{name}").key_in({*id, *(str(each).rpartition("/")[2] for each in id)}) is None:
                raise UnknownNameError("ID set in validation:", name, id)
        self.validation = {
            f"id/{name}": _as_loader(f"validation/{name}", data, batch_size, num_workers)
            for name, data in validation.items()
        }
        if self.validation:
            require_loaders(self.validation)
        self.notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, loaders: Mapping[str, DataLoader[Any]], validation: Mapping[str, DataLoader[Any]] | None = None
    ) -> EvaluationSuite:
        """Return the suite of loaders that are named ``id/...`` and ``ood/...`` already."""
        require_kind("loaders", loaders, Mapping, "a mapping of names such as 'id/svhn' to loaders")
        named = [(LoaderName.parse(loader), data) for loader, data in loaders.items()]
        sets = ({name.keys[0]: data for name, data in named if name.domain == domain} for domain in DOMAINS)
        return cls(*sets, validation=validation)

    def val_dataloader(self) -> dict[str, DataLoader[Any]]:
        """Return the loaders by name."""
        return self.loaders

    test_dataloader = predict_dataloader = val_dataloader


def _require_without_domain(domain: str, name: str) -> None:
    """Refuse a set that is named as its loader will be: its domain would be taken for a group."""
    first, _, rest = name.partition("/")
    if first in DOMAINS and rest:
        raise ValueError(
            f"{domain}: {name!r} begins with a domain, which the suite puts before each name: say {rest!r} among the "
            f"{first} sets."
        )


def _as_loader(name: str, data: Any, batch_size: int, num_workers: int) -> DataLoader[Any]:
    if isinstance(data, DataLoader):
        return data
    if not isinstance(data, Dataset):
        hint = (
            f" Sets of a group are named {f'{name}/<name>'.partition('/')[2]!r}." if isinstance(data, Mapping) else ""
        )
        raise TypeError(f"{name!r} must be a data set or a loader, not {type(data).__name__}.{hint}")
    return DataLoader(data, batch_size=batch_size, num_workers=num_workers)


_BESIDES_ORDER = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
)
"""What of a loader is not about its order."""


def loader_like(loader: DataLoader[Any], data: Any, **order: Any) -> DataLoader[Any]:
    """Return a loader of other data, in batches of one's size, collated and by workers as there.

    Args:
        loader: What it is like; it has a batch size.
        data: A data set.
        order: How the samples follow each other, as ``DataLoader`` takes it; by default as they are.
    """
    besides = {name: getattr(loader, name) for name in _BESIDES_ORDER}
    return DataLoader(data, batch_size=loader.batch_size, **besides, **order)


def with_own_workers(loader: Any) -> Any:
    """Return a copy of a loader whose persistent workers are not those of a run that uses the loader, too.

    To go through them anew would start them over in the midst of the run's own pass.
    """
    if not isinstance(loader, DataLoader):
        return loader
    copied = copy.copy(loader)
    vars(copied)["_iterator"] = None
    return copied


def require_loaders(loaders: object) -> dict[str, Any]:
    """Return loaders by name, or refuse wrong names, empty data sets and ``drop_last``, which leaves samples out."""
    if not isinstance(loaders, Mapping) or not loaders:
        given = "an empty dict" if isinstance(loaders, Mapping) else f"a {type(loaders).__name__}"
        raise ValueError(f"dataloaders must be a dict such as {{'id/svhn': loader, 'ood/mnist': loader}}, not {given}.")
    require_groups_apart(map(str, loaders))
    for name, loader in loaders.items():
        if "/dataloader_idx_" in str(name):
            raise ValueError(f"loader {name!r}: '/dataloader_idx_' is taken by Lightning; choose another name.")
        _require_iterable(name, loader)
        if getattr(getattr(loader, "batch_sampler", None), "drop_last", False):
            raise ValueError(f"loader {name!r} has drop_last=True, so that samples would not be counted.")
        if hasattr(getattr(loader, "dataset", None), "__len__") and not len(loader.dataset):
            raise ValueError(f"loader {name!r} has an empty data set.")
        if _has_no_batch(loader):
            raise ValueError(f"loader {name!r} gives no batch.")
    return dict(loaders)


def _require_iterable(name: str, loader: Any) -> None:
    """Refuse what yields no batches, such as a data set, or several loaders under one name."""
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise ValueError(f"loader {name!r} is a data set, which yields samples; give a DataLoader of it.")
    inner = loader if isinstance(loader, list | tuple) else ()
    if isinstance(loader, Mapping | CombinedLoader) or any(isinstance(item, DataLoader) for item in inner):
        raise ValueError(f"loader {name!r} is a {type(loader).__name__} of loaders; give each a name of its own.")
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise TypeError(f"loader {name!r} must be a loader or yield batches, not a {type(loader).__name__}.")


def _has_no_batch(loader: Any) -> bool:
    try:
        return len(loader) == 0
    except (TypeError, NotImplementedError, AttributeError):
        return False

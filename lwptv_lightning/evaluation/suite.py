"""Named ID and OOD loaders, and which samples of a batch count when several processes share a loader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lwptv_lightning.evaluation.loaders import require_loaders
from lwptv_lightning.registry import DOMAINS, LoaderName


class EvaluationSuite(LightningDataModule):
    """ID and OOD sets to validate, test or predict on.

    Several processes count each sample once. Of iterable data sets each process must yield its own share; a warning
    says so where two yield the same.

    Args:
        id: Task name to a data set or loader of that task's domain.
        ood: Name to a data set or loader of a domain that no task was tuned on.
        batch_size: For those given as data sets.
        num_workers: For those given as data sets.

    Raises:
        ValueError: No set, an empty one, or a loader with ``drop_last``.
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
        batch_size: int = 128,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        groups = dict(zip(DOMAINS, (id, ood or {}), strict=True))
        named = {str(LoaderName(domain, name)): data for domain in DOMAINS for name, data in groups[domain].items()}
        self.loaders = {name: _as_loader(name, data, batch_size, num_workers) for name, data in named.items()}
        require_loaders(self.loaders)

    @classmethod
    def of(cls, loaders: Mapping[str, DataLoader[Any]]) -> EvaluationSuite:
        """Return the suite of loaders that are named ``id/...`` and ``ood/...`` already."""
        groups: dict[str, dict[str, DataLoader[Any]]] = {domain: {} for domain in DOMAINS}
        for loader, data in loaders.items():
            name = LoaderName.parse(loader)
            groups[name.domain][name.name] = data
        return cls(groups["id"], groups["ood"])

    def val_dataloader(self) -> dict[str, DataLoader[Any]]:
        """Return the loaders by name."""
        return self.loaders

    test_dataloader = predict_dataloader = val_dataloader


def _as_loader(name: str, data: Any, batch_size: int, num_workers: int) -> DataLoader[Any]:
    if isinstance(data, DataLoader):
        return data
    if not isinstance(data, Dataset):
        raise TypeError(f"{name!r} must be a data set or a loader, not {type(data).__name__}.")
    return DataLoader(data, batch_size=batch_size, num_workers=num_workers)

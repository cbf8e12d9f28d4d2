"""Any `LightningDataModule` as the named loaders that an evaluation needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule

from lwptv_lightning.evaluation.loaders import EvaluationSuite
from lwptv_lightning.registry import ConfigurationError

_EXPECTED = "a dict of named loaders, {'id/cats': loader, 'ood/far/cats_drawn': loader, 'validation/cats': loader}"
_TRANSFERS = ("transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer")


def as_suite(key: str, data: LightningDataModule) -> EvaluationSuite:
    """Return the loaders of a data module as a suite.

    Its ``val_dataloader`` returns a dict: ``id/...`` and ``ood/...`` are sets to report, and ``validation/<task>``
    those for choices.

    Args:
        key: Where it stands in a configuration, for messages.
        data: The data module; an `EvaluationSuite` is taken as it is.

    Raises:
        ConfigurationError: Its loaders have no names, or it changes batches where loaders by themselves are read, too.
    """
    if isinstance(data, EvaluationSuite):
        return data
    kind = type(data).__name__
    changed = [name for name in _TRANSFERS if getattr(type(data), name) is not getattr(LightningDataModule, name)]
    if changed:
        raise ConfigurationError(
            key,
            f"{kind}.{changed[0]} would not be called for all that reads its loaders; do it in the loaders' "
            "collate_fn, or in the data sets.",
        )
    if getattr(data.val_dataloader, "__func__", None) is LightningDataModule.val_dataloader:
        raise ConfigurationError(key, f"{kind} has no val_dataloader, expected one that returns {_EXPECTED}.")
    data.prepare_data()
    data.setup("validate")
    loaders: Any = data.val_dataloader()
    if not isinstance(loaders, Mapping):
        raise ConfigurationError(
            key, f"{kind}.val_dataloader returns a {type(loaders).__name__}, expected {_EXPECTED}."
        )
    reported = {str(name): loader for name, loader in loaders.items() if not str(name).startswith("validation/")}
    chosen = {str(name).partition("/")[2]: loader for name, loader in loaders.items() if str(name) not in reported}
    try:
        return EvaluationSuite.of(reported, chosen)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(key, f"{kind}.val_dataloader: {error}") from error

"""Lightning behind names of our own: the one place of the package that touches what is private to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import RunningStage

from lwptv_lightning.engine import ALONE, Ranks


def trainer_of(module: LightningModule) -> Trainer | None:
    """Return the trainer that a module is attached to, where there is one; ``module.trainer`` raises without."""
    return module._trainer


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return a trainer's callbacks."""
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]


def stage_of(trainer: Trainer) -> str:
    """Return what a running trainer is doing: one of ``"validate"``, ``"sanity_check"``, ``"test"``, ``"predict"``."""
    return str(trainer.state.stage.value)  # type: ignore[union-attr]


def loaders_of(trainer: Trainer, stage: str) -> Any:
    """Return the loaders of an evaluation as they were given; ``None`` where there are none, as of a fit."""
    name = {"validate": "val_dataloaders", "test": "test_dataloaders", "predict": "predict_dataloaders"}.get(stage)
    return None if name is None else getattr(trainer, name)


def batch_limit(trainer: Trainer) -> int | None:
    """Return how many batches a fast development run takes of each loader; ``None`` in any other run."""
    return int(trainer.fast_dev_run) or None  # type: ignore[attr-defined]


def shared_loaders(trainer: Trainer, loaders: Mapping[str, Any]) -> dict[str, Any]:
    """Return loaders as the trainer itself would validate them: each process gets its share of the samples."""
    share = trainer._data_connector._prepare_dataloader
    return {name: share(loader, shuffle=False, mode=RunningStage.VALIDATING) for name, loader in loaders.items()}


def forget_logged_(module: LightningModule) -> None:
    """Make a module's trainer forget what was logged in earlier evaluations.

    It remembers as which loader's a name was logged, and fails when the name is another loader's in a later run.
    """
    logged: Any = {} if module._trainer is None else module._trainer._results or {}
    for key in [key for key in logged if key.startswith(("validation_step.", "test_step."))]:
        del logged[key]


def ranks_of(trainer: Trainer) -> Ranks:
    """Return a trainer's processes; a trainer of one device works alone, whatever process group there is."""
    return Ranks.current() if trainer.world_size > 1 else ALONE


@contextmanager
def merging_together(trainer: Trainer) -> Iterator[Ranks]:
    """Give a trainer's processes for a merge; where one of them fails all of them do. Some strategies are refused."""
    if isinstance(trainer.strategy, FSDPStrategy):
        raise ValueError(
            "FSDPStrategy flattens parameters, so that merged weights cannot be installed; use "
            "ModelParallelStrategy, which shards with FSDP2."
        )
    ranks = ranks_of(trainer)
    with ranks.sharing_errors():
        yield ranks


def on_rank_zero(trainer: Trainer, action: Callable[[], Any]) -> Any:
    """Run something on the first process; all of them get its result, or its error."""
    with ranks_of(trainer).sharing_errors():
        result = action() if trainer.is_global_zero else None
    return trainer.strategy.broadcast(result)

"""What runs a trainer for a command: its progress on the standard error alone, and no word of Lightning's on itself."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

from lwptv_lightning.registry import work

_SPEAKERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")


@contextmanager
def without_banners() -> Iterator[None]:
    """Leave out what Lightning says of devices and of products; its warnings, and what others say by it, stay."""

    def is_said_by_others(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or "/lightning/" not in record.pathname.replace("\\", "/")

    loggers = [logging.getLogger(name) for name in _SPEAKERS]
    for logger in loggers:
        logger.addFilter(is_said_by_others)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_said_by_others)


@contextmanager
def running(trainer: Any, *, shown: bool = True) -> Iterator[None]:
    """Let a trainer run: what is printed meanwhile goes to the standard error, and so does a bar in place of its own.

    A trainer that was asked for no bar shows none; one with a bar of the user's own keeps that. What shows its progress
    itself has none ``shown``.
    """
    from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

    bars = [callback for callback in trainer.callbacks if type(callback) in (RichProgressBar, TQDMProgressBar)]
    before = list(trainer.callbacks)
    if bars:
        kept = [callback for callback in before if callback not in bars]
        trainer.callbacks[:] = [_progress(), *kept] if shown else kept
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            # Lightning's own use of torch, once for each evaluation.
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
            yield
    finally:
        trainer.callbacks[:] = before


def _progress() -> Any:
    """Return a callback that tells whoever watches how many batches are done."""
    from lightning.pytorch import Callback

    class Progress(Callback):
        """A trainer's batches as `work`."""

        def __init__(self) -> None:
            self.shown: dict[str, ExitStack] = {}
            self.advance: dict[str, Any] = {}

        def begin(self, stage: str, what: str, total: float | None) -> None:
            self.end(stage)
            self.shown[stage] = ExitStack()
            self.advance[stage] = self.shown[stage].enter_context(work(what, total))

        def end(self, stage: str) -> None:
            if stage in self.shown:
                self.shown.pop(stage).close()

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self.begin("validate", "Evaluating", _finite(sum(trainer.num_val_batches)))

        def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
            self.advance["validate"]()

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.end("validate")

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
            steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
            self.begin("fit", "Learning", _finite(min(steps, trainer.num_training_batches * epochs)))

        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            self.advance["fit"]()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.end("fit")

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            for stage in list(self.shown):
                self.end(stage)

    return Progress()


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None

"""`RecalibrateBatchNorm`: measure a merged model's running statistics on data."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.modules.batchnorm import _BatchNorm

from lwptv_lightning.evaluation import MergeModule


class RecalibrateBatchNorm(Callback):
    """Recompute the running statistics of batch normalisation before an evaluation, after the merge.

    The merged weights give other activations than any task's, so that averaged statistics fit them only roughly. Each
    process runs all the batches, so that all get the same statistics; give every process the same loader. The
    statistics become plain averages over the batches. Put this callback after `PruneAndMerge`, which gives a module
    that is not its own the old statistics back.

    Args:
        batches: Inputs or ``(inputs, ...)``, such as a loader of training data without shuffling; labels are not used.
        limit: How many batches to use at most; all by default.

    Raises:
        ValueError: ``limit`` is below 1, or there are no batches.

    Example:
        >>> RecalibrateBatchNorm([torch.zeros(2, 3)], limit=1).limit
        1
    """

    def __init__(self, batches: Iterable[Any], *, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}.")
        self.batches = batches
        self.limit = limit

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Recalibrate, unless this is the sanity check."""
        if not trainer.sanity_checking:
            self.recalibrate_(pl_module)

    on_test_start = on_predict_start = on_validation_start

    def recalibrate_(self, pl_module: LightningModule) -> None:
        """Run the batches through a module, a `MergeModule` without a head, with only batch normalisation training."""
        model = pl_module.model if isinstance(pl_module, MergeModule) else pl_module
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
        if not norms:
            return
        modes = [(module, module.training) for module in model.modules()]
        momenta = [norm.momentum for norm in norms]
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
            norm.train()
        try:
            ran = False
            with torch.no_grad():
                for batch in islice(self.batches, self.limit):
                    inputs = batch[0] if isinstance(batch, list | tuple) else batch
                    model(inputs.to(pl_module.device))
                    ran = True
            if not ran:
                raise ValueError("RecalibrateBatchNorm has no batches to measure statistics on.")
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            for module, training in modes:
                module.training = training

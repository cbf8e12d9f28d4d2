"""`EvaluationSteps`: how a model and its heads are run over named loaders, and what of it is counted and logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lwptv_lightning.evaluation.heads import Heads
from lwptv_lightning.evaluation.inputs import inputs_of
from lwptv_lightning.evaluation.labels import require_labels, require_logits
from lwptv_lightning.evaluation.lightning import (
    forget_logged_,
    is_last_batch,
    log_figures_,
    replicas_of,
    trainer_of,
)
from lwptv_lightning.evaluation.loaders import require_loaders
from lwptv_lightning.evaluation.metrics import LoaderMetrics
from lwptv_lightning.evaluation.shares import Replicas, must_meet


class EvaluationSteps(LightningModule):
    """The steps of an evaluation; what a `MergeModule` is besides its merge."""

    model: nn.Module
    heads: Heads
    metrics: LoaderMetrics
    expert_accuracy: Mapping[str, float]
    _metric: Metric | MetricCollection | None

    def __init__(self) -> None:
        super().__init__()
        self._loaders: dict[str, Any] = {}

    def prepare(self, loaders: object, replicas: Replicas | None = None) -> None:
        """Check loaders and heads, and make a metric for each; ``replicas`` evaluate them, by default the trainer's."""
        self._loaders = require_loaders(loaders)
        replicas = replicas or replicas_of(trainer_of(self))
        self.heads.require_for(self._loaders)
        together = must_meet(self._loaders, replicas, self.model)
        self.metrics = LoaderMetrics(tuple(self._loaders), self._metric, replicas, together).to(self.device)
        forget_logged_(self)

    def require_logits(self) -> None:
        """Raise a `ValueError` where neither the model nor a head makes the logits that the metric needs."""
        require_logits(self.model, self.heads, self._metric)

    def unpack(self, batch: Any) -> tuple[Any, Any]:
        """Return inputs and targets of a batch; override it for batches that do not begin with these."""
        if isinstance(batch, list | tuple) and len(batch) >= 2:
            return batch[0], batch[1]
        raise TypeError(f"a batch must be (inputs, targets), not {type(batch).__name__}; override unpack for others.")

    def head_of(self, loader: str) -> str | None:
        """Return the name of the head for a loader; ``None`` where the model itself gives the logits."""
        return self.heads.of_loader(loader)

    def count(self, loader: str, batch: Any, batch_idx: int) -> int:
        """Update a prepared loader's metric with the samples of a batch that count, and return how many these are."""
        with self.metrics.counting(loader):
            inputs, targets = self.unpack(batch)
            logits = self(inputs, self.head_of(loader))
            require_labels(loader, logits, targets, self._metric)
            return self.metrics.count(loader, self._loaders[loader], batch_idx, logits, targets, inputs)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update the loader's metric, and log its figures at the last batch."""
        loader = tuple(self._loaders)[dataloader_idx]
        self.count(loader, batch, batch_idx)
        if is_last_batch(self.trainer, self._loaders[loader], batch_idx, dataloader_idx):
            log_figures_(self, self.metrics.unlogged(loader))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Do what `validation_step` does."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the logits of a batch, which may be inputs alone."""
        head = self.head_of(tuple(self._loaders)[dataloader_idx]) if self.heads else None
        logits: Tensor = self(inputs_of(self, batch), head)
        return logits

    def on_validation_epoch_end(self) -> None:
        """Log the averages over the loaders."""
        for loader in self._loaders:
            log_figures_(self, self.metrics.unlogged(loader))  # of one that had fewer batches than it said
        log_figures_(self, self.metrics.averages(self.expert_accuracy))

    def on_test_epoch_end(self) -> None:
        """Log the averages over the loaders."""
        self.on_validation_epoch_end()

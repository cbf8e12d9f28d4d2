"""`EvaluationSteps`: how a model and its heads are run over named loaders, and what of it is counted and logged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lwptv_lightning.evaluation.heads import Heads
from lwptv_lightning.evaluation.inputs import inputs_of
from lwptv_lightning.evaluation.interface import Interface, naming_loader
from lwptv_lightning.evaluation.labels import require_labels, require_logits
from lwptv_lightning.evaluation.lightning import (
    forget_logged_,
    is_last_batch,
    log_figures_,
    replicas_of,
    trainer_of,
)
from lwptv_lightning.evaluation.loaders import require_loaders
from lwptv_lightning.evaluation.metric_choice import AnyMetric, MetricChoice, takes_any_output
from lwptv_lightning.evaluation.metrics import LoaderMetrics
from lwptv_lightning.evaluation.shares import Replicas, must_meet


class EvaluationSteps(LightningModule):
    """The steps of an evaluation; what a `MergeModule` is besides its merge."""

    model: nn.Module
    heads: Heads
    interface: Interface
    metric_choice: MetricChoice
    metrics: LoaderMetrics
    expert_accuracy: Mapping[str, float]

    def __init__(self) -> None:
        super().__init__()
        self._loaders: dict[str, Any] = {}
        self._takes_any_output: tuple[LoaderMetrics, bool] | None = None

    def prepare(
        self, loaders: object, replicas: Replicas | None = None, *, partly: bool = True, measured: bool = True
    ) -> None:
        """Check loaders and heads, and make a metric for each; ``replicas`` evaluate them, by default the trainer's.

        Unless ``partly``, all loaders that metrics are named for must be there; where nothing is ``measured``, none.
        """
        self._loaders = require_loaders(loaders)
        replicas = replicas or replicas_of(trainer_of(self))
        self.heads.require_for(self._loaders)
        metrics = self.metric_choice.of(self.heads_for(self._loaders), partly=partly) if measured else {}
        together = measured and must_meet(self._loaders, replicas, self.model)
        self.metrics = LoaderMetrics(tuple(metrics), metrics or None, replicas, together).to(self.device)
        forget_logged_(self)

    def heads_for(self, loaders: Iterable[str]) -> dict[str, nn.Module]:
        """Return for each of some loaders what makes its logits: its head, or the model where there are no heads."""
        named = {loader: self.head_of(loader) for loader in loaders}
        return {loader: self.model if head is None else self.heads[head] for loader, head in named.items()}

    def _measures(self) -> list[AnyMetric]:
        return [*self.metrics.named().values()] or self.metric_choice.given()

    @property
    def takes_any_output(self) -> bool:
        """Whether a metric may take what is no tensor, such as detections."""
        # Asked for in each call of the model.
        if self._takes_any_output is None or self._takes_any_output[0] is not self.metrics:
            self._takes_any_output = self.metrics, any(map(takes_any_output, self._measures()))
        return self._takes_any_output[1]

    def require_logits(self) -> None:
        """Raise a `ValueError` where neither the model nor a head makes the logits that the metrics need."""
        require_logits(self.model, self.heads, *self._measures())

    def unpack(self, batch: Any) -> tuple[Any, Any]:
        """Return inputs and targets of a batch, as ``batch_keys`` say; override it where these cannot say it."""
        return self.interface.unpack(batch)

    def head_of(self, loader: str) -> str | None:
        """Return the name of the head for a loader; ``None`` where the model itself gives the logits."""
        return self.heads.of_loader(loader)

    def count(self, loader: str, batch: Any, batch_idx: int) -> int:
        """Update a prepared loader's metric with the samples of a batch that count, and return how many these are."""
        with self.metrics.counting(loader):
            with naming_loader(loader):
                inputs, targets = self.unpack(batch)
                logits = self(inputs, self.head_of(loader))
            require_labels(loader, logits, targets, self.metrics[loader])
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

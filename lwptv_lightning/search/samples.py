"""`Samples`: the ID data that a sweep may look at before it measures, and what it finds there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lwptv_lightning.engine import DataStatistics
from lwptv_lightning.evaluation import (
    STATISTICS,
    MergeModule,
    NormAverages,
    Replicas,
    StatisticsCollector,
    inputs_of,
    measuring,
    naming_loader,
    norms_of,
    require_loaders,
    share_of,
    transferred,
    uncombined,
    with_own_workers,
)
from lwptv_lightning.functional import Replaceable, plain_name
from lwptv_lightning.merging import Undo, exchange_, installable
from lwptv_lightning.registry import require_kind
from lwptv_lightning.search.digests import digest_of
from lwptv_lightning.search.passes import CandidatesModule, Passes, PassModule


class Samples:
    """Loaders of the tasks' own data, whose order is drawn once.

    Args:
        trainer: Goes through them.
        module: Model, task vectors and heads.
        given: Name to loader, ``id/...``; ``None`` for none.

    Raises:
        ValueError: One is no ID set, or as `require_loaders` says.
    """

    def __init__(self, trainer: Trainer, module: MergeModule, given: Mapping[str, Any] | None) -> None:
        require_kind("samples", given, Mapping | None, "a mapping of names such as 'id/svhn' to loaders")
        self.trainer = trainer
        self.module = module
        self.given = require_loaders(uncombined(given)) if given else {}
        for name in self.given:
            if not name.startswith("id/"):
                raise ValueError(
                    f"samples: {name!r} is no ID set. Nothing is chosen, learnt or measured but on the tasks' own "
                    "data; give loaders named 'id/<task>'."
                )
        self._passes = Passes(self.given, seed=0, exact=True)
        self._everywhere = Passes(self.given, seed=0)
        self._statistics: dict[str, DataStatistics] = {}
        self._digest: str | None = None

    def __bool__(self) -> bool:
        return bool(self.given)

    def require_for(self, kind: str) -> None:
        """Raise a `ValueError` where a task has no data to collect a kind of statistics on."""
        StatisticsCollector(kind).require_loaders(self.module, self.given)

    @property
    def digest(self) -> str:
        """What tells these samples, their order and their batches from others; they are read for it once."""
        if self._digest is None:
            step = CandidatesModule(self.module, self._passes, [])
            self._passes.run(self.trainer, step)
            shares = {name: share_of(loader) for name, loader in (self._passes.loaders or {}).items()}
            order = {name: None if share is None else repr(share.batches) for name, share in shares.items()}
            # In the loaders' order, in which averages are added up.
            self._digest = digest_of(list(self._passes.digests.items()), order)
        return self._digest

    def statistics(self, kind: str) -> DataStatistics:
        """Return what a rule needs to know, collected once as `CollectDataStatistics` does it."""
        if kind not in self._statistics:
            step = _CollectModule(self.module, self._passes, StatisticsCollector(kind))
            with Undo() as undo:
                vectors = self.module.vectors
                names = installable(self.module.model, vectors)
                exchange_(self.module.model, {name: vectors.base(name) for name in names}, undo)
                self._passes.run(self.trainer, step)
                undo.take_back()
            self._statistics[kind] = step.statistics
        return self._statistics[kind]

    @torch.no_grad()
    def measure_norms_(self, trainer: Trainer, weights: Sequence[dict[str, Tensor]]) -> None:
        """Put into weights the running statistics that the model has with them, as `RecalibrateBatchNorm` does it.

        Every process runs all batches through each candidate.

        Args:
            trainer: That validates now.
            weights: Name in the model to tensor, of some candidates.

        Raises:
            ValueError: The loaders give no batch.
        """
        module = self.module
        merged = set(module.vectors.shared_names)
        norms = {
            path: norm
            for path, norm in norms_of(module.model).items()
            if any(f"{path}.{name}".lstrip(".") in merged for name in norm.state_dict())
        }
        if not norms or not weights:
            return
        averages = [NormAverages(norms) for _ in weights]
        with measuring(module.model, norms), torch.compiler.set_stance("force_eager"):
            calls = [self._call(norms, each) for each in weights]
            for name, loader in self._everywhere.share(self.given, Replicas(), trainer.limit_val_batches).items():
                for batch in with_own_workers(loader):
                    with naming_loader(name):
                        inputs = inputs_of(module, transferred(trainer, batch))
                    for call, average in zip(calls, averages, strict=True):
                        with average.adding(), trainer.precision_plugin.val_step_context():
                            call(inputs)
        for own, average in zip(weights, averages, strict=True):
            own |= {name: tensor.to(own[name].device) for name, tensor in average.tensors().items() if name in own}

    def _call(self, norms: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Any:
        """Return what calls the model, without a head unless a subclass knows better, with weights and own sums."""
        runner = _Runner(self.module)
        named = {plain_name(name): name for name in self.module.model.state_dict()}
        started = {
            f"{path}.{name}".lstrip("."): torch.zeros_like(getattr(norm, name))
            for path, norm in norms.items()
            for name in STATISTICS
        }
        tensors = {f"module.model.{named[name]}": tensor for name, tensor in (dict(weights) | started).items()}
        return Replaceable(runner).with_(tensors)


class _Runner(nn.Module):
    """Runs inputs through a merge module as `RecalibrateBatchNorm` does."""

    def __init__(self, module: MergeModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Any) -> Any:
        if type(self.module).forward is MergeModule.forward:
            return self.module.interface.run(self.module.model, inputs)
        return self.module(inputs)


class _CollectModule(PassModule):
    """Collects a kind of data statistics in a validation."""

    def __init__(self, module: MergeModule, passes: Passes, collector: StatisticsCollector) -> None:
        super().__init__(module, passes)
        self._collector = collector
        self.statistics: DataStatistics = {}

    def on_validation_start(self) -> None:
        super().on_validation_start()
        with self.replicas.ranks.sharing_errors():
            self._collector.begin(self.module, self.loaders, self.replicas)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        name = self.name_of(dataloader_idx)
        with self.replicas.ranks.telling_errors():
            self._collector.add(self.module, name, self.loaders[name], batch_idx, batch)

    def on_validation_epoch_end(self) -> None:
        self.statistics = self._collector.statistics(partial(self.trainer.strategy.reduce, reduce_op="sum"))

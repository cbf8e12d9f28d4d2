"""Passes over loaders in which each batch runs through one architecture with several sets of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lwptv_lightning.evaluation import (
    MergeModule,
    Replicas,
    draws_kept,
    in_precision,
    loaders_of,
    naming_loader,
    replicas_of,
    share_evaluation_,
    share_loaders,
)
from lwptv_lightning.functional import plain_name, plain_state
from lwptv_lightning.merging import Undo, in_dtype, keep_modes
from lwptv_lightning.search.digests import digest_of
from lwptv_lightning.search.judge import Batch, Judge
from lwptv_lightning.search.outcomes import Outcomes


@dataclass
class Passes:
    """What the passes over the data have in common: loaders whose batches are drawn once, and their samples.

    Attributes:
        given: Name to loader.
        seed: Where it is given, loaders that draw their order from torch draw by it.
        exact: Whether what is no tensor, such as texts, tells samples apart, too.
        loaders: What each process goes through; ``None`` before the first pass.
        seen: Loader name to the fingerprints of its samples; empty before the first pass.
        joins: Whether the model may run batches together; ``None`` where that is not known yet.
    """

    given: Mapping[str, Any]
    seed: int | None = None
    exact: bool = False
    loaders: dict[str, Any] | None = None
    seen: dict[str, Tensor] = field(default_factory=dict)
    joins: bool | None = None

    def share(self, loaders: object, replicas: Replicas, limit: float | None) -> dict[str, Any]:
        """Do what `share_loaders` does, the same in each pass."""
        if self.loaders is None:
            # Later passes draw no order, and begin with the same random states.
            with draws_kept(self.given.values()):
                if self.seed is not None:
                    torch.manual_seed(self.seed)
                self.loaders = share_loaders(loaders, replicas, limit, fixed=True)
        return self.loaders

    def run(self, trainer: Trainer, step: PassModule) -> None:
        """Let a trainer go through the loaders with a step; the module's modes and dtypes, and all draws, stay."""
        with draws_kept(self.given.values()), in_precision(trainer, step.module), Undo() as undo:
            keep_modes(step.module, undo)
            trainer.validate(step, dict(self.given), verbose=False)

    @property
    def digests(self) -> dict[str, list[Any]]:
        """The number of samples that each loader has, and what tells them from others; after a first pass."""
        return {name: [len(seen), digest_of(seen)] for name, seen in self.seen.items()}

    def require_same(self, name: str, seen: Tensor) -> None:
        """Raise `ValueError` unless a loader gives what it gave in the first pass."""
        first = self.seen.setdefault(name, seen)
        if not torch.equal(first, seen):
            found = f"{len(seen)} samples after {len(first)}"
            if len(first) == len(seen):
                found = f"{int((first != seen).sum())} of {len(seen)} samples changed"
            raise ValueError(
                f"loader {name!r} gives other samples in a second pass ({found}), so that candidates could not be "
                "compared in pairs. Let it give the same each time, without random augmentation, or raise at_once."
            )


class PassModule(LightningModule):
    """What a trainer validates in the place of a `MergeModule`: batches reach a device by that one's hooks."""

    def __init__(self, module: MergeModule, passes: Passes) -> None:
        super().__init__()
        self.module = module
        self.passes = passes
        self.replicas = Replicas()
        self.loaders: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Take the loaders of all passes."""
        share_evaluation_(self.trainer, stage, self.passes.share)

    def on_validation_start(self) -> None:
        """Remember who divides which loaders."""
        self.replicas = replicas_of(self.trainer)
        self.loaders = loaders_of(self.trainer, "validate")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Do what the merge module does."""
        return self.module.on_before_batch_transfer(batch, dataloader_idx)

    def transfer_batch_to_device(self, *given: Any) -> Any:
        """Do what the merge module does."""
        return self.module.transfer_batch_to_device(*given)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Do what the merge module does."""
        return self.module.on_after_batch_transfer(batch, dataloader_idx)

    def name_of(self, dataloader_idx: int) -> str:
        """Return the name of the loader that a batch is of."""
        return tuple(self.loaders)[dataloader_idx]


class CandidatesModule(PassModule):
    """Counts what several candidates get right; with none of them it reads the samples alone.

    Args:
        module: The architecture and its heads.
        passes: The loaders.
        weights: For each candidate name in the model to tensor; they are changed where ``measure`` is given.
        measure: Measures running statistics anew: from what calls the model with each candidate's weights.
        advance: Is told how many candidates have seen a batch.
    """

    def __init__(
        self,
        module: MergeModule,
        passes: Passes,
        weights: Sequence[Mapping[str, Tensor]],
        *,
        measure: Callable[[Trainer, Sequence[dict[str, Tensor]]], None] | None = None,
        advance: Callable[[int], object] = lambda steps: None,
    ) -> None:
        super().__init__(module, passes)
        self._weights = [dict(tensors) for tensors in weights]
        self._measure = measure
        self._advance = advance
        self._judge = Judge(module, [])
        self._collected: dict[str, Outcomes] = {}
        self.outcomes: dict[str, Tensor] = {}
        """Loader name to outcomes, ``(candidates, N)`` bool, once the pass is over."""

    def on_validation_start(self) -> None:
        """Bring the weights into the dtypes in which the model runs now, and measure what is to be measured of them."""
        super().on_validation_start()
        # The trainer's precision may have changed the model's dtypes since.
        own = plain_state(self.module.model)
        self._weights = [
            {name: in_dtype(name, tensor, own[name].dtype) for name, tensor in weights.items()}
            for weights in self._weights
        ]
        if self._measure is not None:
            with self.replicas.ranks.sharing_errors():
                self._measure(self.trainer, self._weights)
        named = {plain_name(name): name for name in self.module.model.state_dict()}
        weights = [{f"model.{named[name]}": each for name, each in own.items()} for own in self._weights]
        exact = str(self.trainer.precision) in ("32-true", "64-true")
        self._judge = Judge(self.module, weights, joins=self.passes.joins if exact else False)
        self._collected = {name: Outcomes(name, loader, self.passes.exact) for name, loader in self.loaders.items()}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count a batch for each candidate, together with others where it is small."""
        loader = self.name_of(dataloader_idx)
        with self.replicas.ranks.telling_errors():
            with naming_loader(loader):
                inputs, targets = self.module.unpack(batch)
            self._count(self._judge.add(Batch(loader, batch_idx, inputs, targets)))
        self._advance(len(self._weights))

    def _count(self, judged: Iterable[tuple[Batch, Tensor]]) -> None:
        for batch, right in judged:
            with naming_loader(batch.loader):
                self._collected[batch.loader].add(batch.number, [batch.inputs, batch.targets], right)

    def on_validation_epoch_end(self) -> None:
        """Put together what all processes counted, and see that it is of the same samples as in other passes."""
        with self.replicas.ranks.sharing_errors():
            self._count(self._judge.rest())
            if self._weights:
                self.passes.joins = self._judge.joins
            for name, collected in self._collected.items():
                self.outcomes[name], seen = collected.together(self.replicas)
                self.passes.require_same(name, seen)

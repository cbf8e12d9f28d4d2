"""`RecalibrateBatchNorm`: measure a merged model's running statistics on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from lwptv_lightning.evaluation import (
    STATISTICS,
    Interface,
    MergeModule,
    NormAverages,
    WeightsOwner,
    draws_kept,
    inputs_of,
    measuring,
    norms_of,
    of_norms,
    owner_of,
    transferred,
    with_own_workers,
)
from lwptv_lightning.merging import Undo, install_, snapshot
from lwptv_lightning.registry import require_whole


class RecalibrateBatchNorm(Callback):
    """Recompute the running statistics of batch normalisation before an evaluation, after the merge.

    The merged weights give other activations than any task's, so that averaged statistics fit them only roughly. Each
    process runs all the batches, so that all get the same statistics; give every process the same loader. The
    statistics become plain averages over the batches. Where weights are merged, that is those of the layers which have
    merged tensors; others keep theirs, as do those that no batch goes through. A `MergeModule` keeps what was measured,
    as it keeps what was merged; any other module gets its own statistics back. Where this callback stands in the list
    is of no consequence. The batches go through the module's hooks as those of an evaluation do, and draw no random
    number of the run.

    Args:
        batches: Inputs or ``(inputs, ...)``, such as a loader of training data without shuffling; labels are not used.
            Or batches of another kind, whose inputs a `MergeModule`'s ``batch_keys``, or its own ``unpack`` and
            ``forward``, know.
        limit: How many batches to use at most; all by default.
        batch_keys: Where a batch has inputs and targets, for any other module than a `MergeModule`, as that has it.

    Raises:
        ValueError: ``limit`` is below 1, or there are no batches.

    Example:
        >>> RecalibrateBatchNorm([torch.zeros(2, 3)], limit=1).limit
        1
    """

    def __init__(
        self, batches: Iterable[Any], *, limit: int | None = None, batch_keys: Sequence[Any] | None = None
    ) -> None:
        if limit is not None:
            require_whole("limit", limit, 1)
        self.batches = with_own_workers(batches)
        self.limit = limit
        self.interface = Interface(batch_keys)  # type: ignore[arg-type]

    place = "measures"  # after what was merged; see `lwptv_lightning.evaluation.owner_of`

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Bring the callbacks that deal with weights in order."""
        owner_of(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Recalibrate, unless this is the sanity check."""
        if trainer.sanity_checking:
            return
        owner, own = owner_of(trainer), isinstance(pl_module, MergeModule)
        owner.begin(trainer, pl_module, averaged=not own)
        norms = _merged_norms(owner, pl_module)
        with owner.holding(pl_module, of_norms(norms), restores=not own):
            self._measure(pl_module, norms, trainer)

    on_test_start = on_predict_start = on_validation_start

    def recalibrate_(self, pl_module: LightningModule) -> None:
        """Run the batches through a module, a `MergeModule` without a head, with only batch normalisation training."""
        self._measure(pl_module, norms_of(pl_module))

    def _measure(self, pl_module: LightningModule, norms: dict[str, BatchNorm], trainer: Trainer | None = None) -> None:
        """Measure the layers that are named by their paths in the module."""
        if not norms:
            return
        model = pl_module.model if isinstance(pl_module, MergeModule) else pl_module
        averages = NormAverages(norms)
        with Undo() as undo:
            for norm in norms.values():
                undo.add(install_, norm, snapshot(norm, STATISTICS))
            with measuring(model, norms):
                for norm in norms.values():
                    norm.reset_running_stats()
                self._run(pl_module, averages, trainer)
            undo.take_back()  # a layer that no batch went through keeps its own
            install_(pl_module, averages.tensors())

    def _run(self, pl_module: LightningModule, averages: NormAverages, trainer: Trainer | None) -> None:
        run, ran = self._runner_of(pl_module), False
        # Compiled code would pass over the hooks.
        eagerly = torch.compiler.set_stance("force_eager")
        with eagerly, torch.no_grad(), draws_kept([self.batches]), averages.adding():
            for batch in islice(self.batches, self.limit):
                if trainer is not None:
                    batch = transferred(trainer, batch)
                inputs = self._inputs_of(pl_module, batch)
                with nullcontext() if trainer is None else trainer.precision_plugin.val_step_context():
                    run(move_data_to_device(inputs, pl_module.device))
                ran = True
        if not ran:
            raise ValueError("RecalibrateBatchNorm has no batches to measure statistics on.")

    def _inputs_of(self, pl_module: LightningModule, batch: Any) -> Any:
        if isinstance(pl_module, MergeModule):
            return inputs_of(pl_module, batch)
        if self.interface.batch_keys is not None:
            return self.interface.inputs(batch)
        return batch[0] if isinstance(batch, list | tuple) else batch

    def _runner_of(self, pl_module: LightningModule) -> Callable[[Any], Any]:
        """Return what takes inputs: the model of a `MergeModule`, without a head, unless a subclass knows better."""
        if not isinstance(pl_module, MergeModule):
            return partial(self.interface.run, pl_module)
        if type(pl_module).forward is MergeModule.forward:
            return partial(pl_module.interface.run, pl_module.model)
        return pl_module


def _merged_norms(owner: WeightsOwner, pl_module: LightningModule) -> dict[str, BatchNorm]:
    """Return those of them that have merged tensors; all of them, where nothing is merged."""
    norms = norms_of(pl_module)
    if not owner.held:
        return norms
    merged = {
        id(layer)
        for module, names in owner.held
        for path, layer in norms_of(module).items()
        if any(f"{path}.{name}".lstrip(".") in names for name in layer.state_dict())
    }
    return {path: layer for path, layer in norms.items() if id(layer) in merged}

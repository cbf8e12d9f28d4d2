"""`RecalibrateBatchNorm`: measure a merged model's running statistics on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lwptv_lightning.evaluation import (
    Interface,
    MergeModule,
    WeightsOwner,
    draws_kept,
    inputs_of,
    owner_of,
    transferred,
    with_own_workers,
)
from lwptv_lightning.functional import plain_name
from lwptv_lightning.merging import Undo, in_dtype, install_, keep_modes, snapshot
from lwptv_lightning.registry import require_whole

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


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
        names = [f"{path}.{name}".lstrip(".") for path in norms for name in STATISTICS]
        with owner.holding(pl_module, names, restores=not own):
            self._measure(pl_module, norms, trainer)

    on_test_start = on_predict_start = on_validation_start

    def recalibrate_(self, pl_module: LightningModule) -> None:
        """Run the batches through a module, a `MergeModule` without a head, with only batch normalisation training."""
        self._measure(pl_module, _norms_of(pl_module.model if isinstance(pl_module, MergeModule) else pl_module))

    def _measure(
        self, pl_module: LightningModule, named: dict[str, _BatchNorm], trainer: Trainer | None = None
    ) -> None:
        if not named:
            return
        norms = list(named.values())
        model = pl_module.model if isinstance(pl_module, MergeModule) else pl_module
        averages = [_Average(*each) for each in named.items()]
        with Undo() as undo:
            for average in averages:
                undo.add(average.restore_)
            with Undo() as measuring:
                keep_modes(model, measuring)
                model.eval()
                for norm in norms:
                    measuring.add(setattr, norm, "momentum", norm.momentum)
                    norm.reset_running_stats()
                    norm.momentum = 1.0  # what a batch has, which is averaged apart
                    norm.train()
                self._run(pl_module, averages, trainer)
                measuring.take_back()
            undo.hold()
            for average in averages:
                average.install_()
            undo.keep()

    def _run(self, pl_module: LightningModule, averages: list[_Average], trainer: Trainer | None) -> None:
        run, ran = self._runner_of(pl_module), False
        with ExitStack() as hooks, torch.no_grad(), draws_kept([self.batches]):
            # Compiled code would pass over the hooks.
            hooks.enter_context(torch.compiler.set_stance("force_eager"))
            for average in averages:
                hooks.enter_context(average.norm.register_forward_hook(average.add))
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


class _Average:
    """The plain average of a layer's statistics over its batches, in float64: a low precision would round each step."""

    def __init__(self, path: str, norm: _BatchNorm) -> None:
        self.norm = norm
        self._path = path
        self._count = 0
        self._sums: dict[str, Tensor] = {}
        self._before = snapshot(norm, STATISTICS)

    def add(self, *call: object) -> None:
        self._count += 1
        for name in STATISTICS[:2]:
            value = getattr(self.norm, name).to(torch.float64, copy=True)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            getattr(self.norm, name).zero_()  # an infinite one would spoil the next

    def restore_(self) -> None:
        install_(self.norm, self._before)

    def install_(self) -> None:
        if not self._count:
            self.restore_()  # no batch went through it
        with torch.no_grad():
            for name, total in self._sums.items():
                own = getattr(self.norm, name)
                own.copy_(in_dtype(f"{self._path}.{name}".lstrip("."), total / self._count, own.dtype))


def _norms_of(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the layers with running statistics, by their paths."""
    named = module.named_modules()
    return {
        plain_name(path): layer for path, layer in named if isinstance(layer, _BatchNorm) and layer.track_running_stats
    }


def _merged_norms(owner: WeightsOwner, pl_module: LightningModule) -> dict[str, _BatchNorm]:
    """Return those of them that have merged tensors; all of them, where nothing is merged."""
    norms = _norms_of(pl_module)
    if not owner.held:
        return norms
    merged = {
        id(layer)
        for module, names in owner.held
        for path, layer in _norms_of(module).items()
        if any(f"{path}.{name}".lstrip(".") in names for name in layer.state_dict())
    }
    return {path: layer for path, layer in norms.items() if id(layer) in merged}

"""`WeightsOwner`: who holds a module's weights now, when several callbacks put others into it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lwptv_lightning.evaluation.lightning import (
    callbacks_of,
    is_averaging,
    restore_modes_,
    set_callbacks_,
    suspend_averaging_,
    swap_averaged_,
    sync_buffers_,
)
from lwptv_lightning.functional import plain_name
from lwptv_lightning.merging import Undo, exchange_, snapshot


@dataclass
class _Layer:
    """Weights that were put over others.

    Attributes:
        module: Whose weights.
        names: Which of its tensors.
        beneath: What they were before; ``None`` where they are not to be restored.
        sums: What tells whether the parameters are still those that were put there.
        is_out: Whether the module holds what is beneath for now, and ``beneath`` what was put there.
    """

    module: nn.Module
    names: tuple[str, ...]
    beneath: dict[str, Tensor] | None
    sums: list[float] = field(default_factory=list)

    is_out: bool = False

    def take_out_(self) -> None:
        """Put what is beneath into the module, and keep what was in it."""
        if not self.is_out:
            self._exchange_()

    def put_back_(self) -> None:
        """Put into the module what was taken out."""
        if self.is_out:
            self._exchange_()

    def _exchange_(self) -> None:
        with Undo() as undo:
            undo.remember(self, "beneath", "is_out")
            beneath = None if self.beneath is None else exchange_(self.module, self.beneath, undo)
            self.beneath, self.is_out = beneath, not self.is_out
            undo.keep()

    def measured(self) -> list[float]:
        """Return the sum of each parameter."""
        parameters = {plain_name(name): own for name, own in self.module.named_parameters(remove_duplicate=False)}
        own = [parameters[name].detach() for name in self.names if name in parameters]
        local = [value.to_local() if isinstance(value, DTensor) else value for value in own]
        sums = [value.sum(dtype=torch.float32).cpu() for value in local if value.is_floating_point()]
        return torch.stack(sums).nan_to_num().tolist() if sums else []


class WeightsOwner(Callback):
    """Knows whose weights a module holds: a stack, with the run's own weights at the bottom.

    It stands first among a trainer's callbacks. What is held during an evaluation is restored in reverse order before
    any other callback hears of the evaluation's end or failure. While something is held in a validation of a fit,
    Lightning's ``WeightAveraging`` has its averaged weights beneath it, and does not swap them in on top.
    """

    def __init__(self) -> None:
        self._layers: list[_Layer] = []
        self._is_open = False
        self._lays_averages = False
        self._is_in_epoch = False
        self._is_checked = True

    def begin(self, trainer: Trainer, module: LightningModule, *, averaged: bool = True) -> None:
        """Begin to put weights into a module: into the averaged ones, where a validation would be of these."""
        if not self._is_open and trainer.validating:
            with Undo() as undo:
                undo.hold()
                undo.remember(self, "_is_open", "_lays_averages")
                undo.add(suspend_averaging_, trainer, False)
                self._is_open, self._lays_averages = True, averaged
                if averaged:
                    swap_averaged_(trainer, module, undo, into=True)
                    sync_buffers_(trainer)  # which would reach what is put on top of them alone
                suspend_averaging_(trainer, True)
                undo.keep()

    @contextmanager
    def holding(self, module: nn.Module, names: Iterable[str], *, restores: bool = True) -> Iterator[Undo]:
        """Remember some of a module's tensors, and let the ``with`` block put others there.

        Where it ``restores``, they come back when the block fails, when an evaluation ends, and when an evaluation or a
        fit fails. What else the block does, the `Undo` that it is given may take back.
        """
        names = tuple(names)
        layer = _Layer(module, names, snapshot(module, names) if restores else None)
        with Undo() as undo:
            undo.add(self._give_up_, layer)
            self._layers.append(layer)
            yield undo
            for each in self._layers:
                each.sums = each.measured()
            self._is_checked = False
            undo.keep()

    def _give_up_(self, layer: _Layer) -> None:
        layer.take_out_()
        self._layers = [other for other in self._layers if other is not layer]

    @property
    def held(self) -> list[tuple[nn.Module, tuple[str, ...]]]:
        """Whose tensors, and which of them, are not the run's own."""
        return [(layer.module, layer.names) for layer in self._layers]

    @contextmanager
    def own_weights(self, trainer: Trainer, module: LightningModule, *, averaged: bool = True) -> Iterator[None]:
        """Let a module hold the run's own weights meanwhile: those that Lightning would validate, or the raw ones."""
        swaps = averaged and not (self._is_open or self._is_in_epoch)
        with Undo() as undo:
            undo.add(self._put_back_)
            for layer in reversed(self._layers):
                layer.take_out_()
            if swaps:
                swap_averaged_(trainer, module, undo, into=True)
            yield
            undo.take_back()

    def _put_back_(self) -> None:
        for layer in self._layers:
            layer.put_back_()

    def _close(self, trainer: Trainer, module: LightningModule, *, in_epoch: bool) -> None:
        with Undo() as undo:
            undo.hold()
            while self._layers:
                self._layers[-1].take_out_()
                self._layers.pop()
            if self._is_open:
                undo.remember(self, "_is_open")
                self._is_open = False
                if self._lays_averages and not in_epoch:
                    swap_averaged_(trainer, module, undo, into=False)
                suspend_averaging_(trainer, False)
            self._is_in_epoch = False
            undo.keep()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that Lightning has its averaged weights in the module from here on."""
        self._is_in_epoch = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that Lightning has taken its averaged weights out."""
        self._is_in_epoch = False

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Refuse to evaluate other weights than those that were put there."""
        if not self._is_checked:
            self._is_checked = True
            if any(layer.beneath is not None and layer.measured() != layer.sums for layer in self._layers):
                raise ValueError(
                    "the merged weights were replaced before the first batch, so that the evaluation would be of other "
                    f"weights and the module's own could be lost. {_suspects(trainer)}"
                )

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give a module its own weights back."""
        self._close(trainer, pl_module, in_epoch=False)

    on_test_end = on_predict_end = on_validation_end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave what a fit ended with where it is, for good."""
        self._layers.clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give a module its own weights back, and its modes."""
        # Where a validation fails, Lightning leaves its averaged weights in the module.
        self._close(trainer, pl_module, in_epoch=self._is_in_epoch)
        restore_modes_(trainer, pl_module)


def _suspects(trainer: Trainer) -> str:
    hooks = [f"on_{stage}{part}_start" for stage in ("validation", "test", "predict") for part in ("", "_epoch")]
    found = [
        type(callback).__name__
        for callback in callbacks_of(trainer)
        if _place_of(callback) is None
        and not isinstance(callback, WeightsOwner)
        and any(getattr(type(callback), hook) is not getattr(Callback, hook) for hook in hooks)
    ]
    names = ", ".join(dict.fromkeys(found)) or "the module's own hooks"
    return f"Suspected: {names}. A callback that swaps weights must stand before those that merge, or be left out."


_PLACES = ("averages", "installs", "measures", "reads")


def _place_of(callback: Callback) -> int | None:
    """Return when a callback's turn is among those that deal with weights; ``None`` for all others."""
    if is_averaging(callback):
        return _PLACES.index("averages")
    if getattr(callback, "installs_weights", False):
        return _PLACES.index("installs")
    place = getattr(callback, "place", None)
    return _PLACES.index(place) if place in _PLACES else None


def _in_order(callbacks: list[Callback]) -> list[Callback]:
    """Move what merges behind Lightning's averaging, and what measures or reads weights behind what merges."""
    ordered: list[Callback] = []
    for callback in reversed(callbacks):
        own = _place_of(callback)
        places = [None if own is None else _place_of(other) for other in ordered]
        sooner = [index for index, place in enumerate(places) if place is not None and own is not None and place < own]
        ordered.insert(max(sooner, default=-1) + 1, callback)
    return ordered


def owner_of(trainer: Trainer) -> WeightsOwner:
    """Return who knows whose weights a trainer's module holds, after bringing the trainer's callbacks in order.

    Callbacks that deal with weights call this in ``setup``. Lightning's averaging comes before what has the attribute
    ``installs_weights``, and this before what has the ``place`` ``"measures"`` or ``"reads"``; all else stays.
    """
    callbacks = callbacks_of(trainer)
    owner = next((each for each in callbacks if isinstance(each, WeightsOwner)), None) or WeightsOwner()
    ordered = [owner, *_in_order([each for each in callbacks if each is not owner])]
    if ordered != callbacks:
        set_callbacks_(trainer, ordered)
    return owner

"""A module in the dtypes of a trainer's precision for a while, and then in its own again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, equal

from lwptv_lightning.merging import Undo


@contextmanager
def in_precision(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Give a module the precision of a trainer, and afterwards its own dtypes back, and values that did not change."""
    before = {name: tensor.data for name, tensor in _held_tensors(module)}
    with Undo() as undo:
        undo.add(_restore_dtypes_, module, before)
        trainer.precision_plugin.convert_module(module)
        yield
        undo.take_back()


def _restore_dtypes_(module: LightningModule, before: Mapping[str, Tensor]) -> None:
    for name, tensor in _held_tensors(module):
        if tensor.dtype != before[name].dtype:
            own = before[name].to(tensor.device)
            tensor.data = own if equal(own.to(tensor.dtype), tensor) else tensor.data.to(own.dtype)


def _held_tensors(module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()

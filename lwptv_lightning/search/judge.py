"""`Judge`: which samples of a batch a model with each of several sets of weights gets right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lwptv_lightning.evaluation import MergeModule, naming_loader, require_classified, require_labels, tensors_of
from lwptv_lightning.functional import Replaceable

_ENOUGH = 96
"""Samples with which a model is about as fast, for each, as with more."""
_ROUNDING = 1e-4
"""Of the largest logit: what logits may differ by where a model runs a batch together with others."""


@dataclass(frozen=True)
class Batch:
    """A batch of a loader: its number there, and what the loader gives."""

    loader: str
    number: int
    inputs: Any
    targets: Any

    def is_like(self, other: Batch) -> bool:
        """Tell whether the inputs of both can be one tensor."""
        ours, theirs = self.inputs, other.inputs
        return bool(ours.shape[1:] == theirs.shape[1:] and ours.dtype == theirs.dtype and ours.device == theirs.device)


class Judge:
    """Runs batches through a merge module with each set of weights.

    Small batches of several loaders wait for each other, and run through the model as one, each then through its own
    head. Where a model makes something else of a batch among others, as one that normalises over the batch does, this
    is seen at the first ones, and each runs alone. So does, once more, a batch in which the two largest logits of a
    sample are so close that rounding could decide between them: each outcome is that of the batch alone.

    Args:
        module: Architecture and heads.
        weights: For each candidate name in the module to tensor.
        joins: Whether batches may run together; ``None`` where the first ones are to show it.

    Attributes:
        joins: The same, as far as it is known now.
    """

    def __init__(
        self, module: MergeModule, weights: Sequence[Mapping[str, Tensor]], *, joins: bool | None = None
    ) -> None:
        replaceable = Replaceable(module) if weights else None
        self._module = module
        self._alone = [replaceable.with_(each) for each in weights] if replaceable else []
        self._joined = [replaceable.with_(each, self._features) for each in weights] if replaceable else []
        is_sharded = any(isinstance(parameter, DTensor) for parameter in module.parameters())
        is_plain = type(module).forward is MergeModule.forward and not module.takes_any_output
        can_join = is_plain and not is_sharded and not module.interface.is_by_name
        self.joins = joins if can_join else False
        self._waiting: list[Batch] = []

    def add(self, batch: Batch) -> Iterator[tuple[Batch, Tensor]]:
        """Yield batches that were judged, with outcomes ``(candidates, n)``; this one or others may wait."""
        if not self._can_wait(batch):
            yield from self.rest()
            yield batch, self._outcomes(batch)
            return
        if self._waiting and not batch.is_like(self._waiting[0]):
            yield from self.rest()
        self._waiting.append(batch)
        if sum(len(each.inputs) for each in self._waiting) >= _ENOUGH:
            yield from self.rest()

    def rest(self) -> Iterator[tuple[Batch, Tensor]]:
        """Yield the batches that wait, with their outcomes."""
        waiting, self._waiting = self._waiting, []
        together = self._together(waiting) if len(waiting) > 1 else None
        for number, batch in enumerate(waiting):
            yield batch, self._outcomes(batch) if together is None else together[number]

    def _can_wait(self, batch: Batch) -> bool:
        inputs, head = batch.inputs, self._module.head_of(batch.loader)
        if not (
            self._alone
            and self.joins is not False
            and isinstance(inputs, Tensor)
            and inputs.ndim > 1
            and len(inputs) < _ENOUGH
        ):
            return False
        return head is None or not self._module.heads.place(head, self._module.model)

    def _features(self, inputs: Tensor) -> Any:
        """Return what the model makes of inputs, before any head."""
        return self._module.interface.output(self._module.model, inputs)

    def _outcomes(self, batch: Batch) -> Tensor:
        """Return the outcomes of a batch alone."""
        if not self._alone:
            return torch.zeros(0, len(tensors_of(batch.targets)[0]), dtype=torch.bool)
        with naming_loader(batch.loader):
            return self._right(batch, [self._logits(call, batch) for call in self._alone])

    def _logits(self, call: Callable[..., Any], batch: Batch) -> Any:
        with torch.compiler.set_stance("force_eager"):  # compiled code would be compiled anew for each candidate
            return call(batch.inputs, self._module.head_of(batch.loader))

    def _right(self, batch: Batch, logits: Sequence[Any]) -> Tensor:
        require_classified(logits[0], self._module.model, dense=False)
        require_labels(batch.loader, logits[0], batch.targets)
        predicted = torch.stack([each.argmax(1) for each in logits])
        if predicted[0].shape != batch.targets.shape:
            expected, given = tuple(predicted[0].shape), tuple(batch.targets.shape)
            raise ValueError(f"loader {batch.loader!r} gives targets of shape {given}; expected labels, {expected}.")
        right: Tensor = predicted == batch.targets
        return right

    def _together(self, batches: Sequence[Batch]) -> list[Tensor] | None:
        """Return the outcomes of batches that run as one; ``None`` where each must run alone."""
        if self.joins is None:
            self.joins = self._agree(batches)
        if not self.joins:
            return None
        found: list[list[Any]] = [[] for _ in batches]
        for alone, joined in zip(self._alone, self._joined, strict=True):
            if (parts := self._parts(joined, batches)) is None:
                return None
            for own, batch, logits in zip(found, batches, parts, strict=True):
                own.append(self._logits(alone, batch) if _is_close(logits) else logits)
        return [self._right(batch, own) for batch, own in zip(batches, found, strict=True)]

    def _parts(self, joined: Callable[..., Any], batches: Sequence[Batch]) -> list[Any] | None:
        """Return the logits of each batch; ``None`` where something fails, which a batch alone tells better.

        The heads stay the module's own.
        """
        with suppress(RuntimeError, ValueError, TypeError), torch.compiler.set_stance("force_eager"):
            features = joined(torch.cat([batch.inputs for batch in batches]))
            parts = torch.split(features, [len(batch.inputs) for batch in batches])
            heads = [self._module.head_of(batch.loader) for batch in batches]
            return [
                part if head is None else self._module.heads[head](part)
                for part, head in zip(parts, heads, strict=True)
            ]
        return None

    def _agree(self, batches: Sequence[Batch]) -> bool:
        """Tell whether the first candidate makes the same of batches as one and alone, but for rounding."""
        alone = []
        for batch in batches:
            with naming_loader(batch.loader):
                alone.append(self._logits(self._alone[0], batch))
                self._right(batch, alone[-1:])
        parts = self._parts(self._joined[0], batches)
        return parts is not None and all(map(_agree, parts, alone))


def _agree(one: Tensor, other: Tensor) -> bool:
    if not (one.shape == other.shape and other.dtype in (torch.float32, torch.float64)):
        return False
    return bool(((one - other).abs() <= _ROUNDING * other.abs().max()).all())  # a NaN is no agreement


def _is_close(logits: Tensor) -> bool:
    """Tell whether rounding could decide what is predicted of a sample."""
    if logits.shape[1] < 2:
        return False
    top = logits.topk(2, dim=1).values
    return not bool((top[:, 0] - top[:, 1] > 4 * _ROUNDING * logits.abs().amax()).all())

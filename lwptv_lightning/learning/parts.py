"""`HeldParts`: what a rule makes of each task, in memory, and the model that coefficients make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.engine import Execution, Stream
from lwptv_lightning.evaluation import MergeModule, with_memo
from lwptv_lightning.layers import Layers
from lwptv_lightning.merging import Merge, MergePlan, installable
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import natural_order
from lwptv_lightning.saliency import LayerStatistics
from lwptv_lightning.task_vectors import TaskVectors

_OPTIONS = ("data", "statistics", "execution", "max_memory")


def options_of_parts(module: MergeModule) -> dict[str, Any]:
    """Return what of a module's options says what parts are made of, and how; a mask or scores are of its own recipe.

    Statistics of layers are for scores, too.
    """
    given = {name: module.options.get(name) for name in _OPTIONS}
    return {name: value for name, value in given.items() if not isinstance(value, LayerStatistics | None)}


@dataclass(frozen=True)
class HeldParts:
    """The parts ``P[t, l]`` of the sum that a rule is, and the base that they are added to.

    The model is ``theta_0 + sum_t c[t, l] P[t, l]``; its tensors are made without a graph, as leaves, and a layer's
    gradient is ``<grad theta_l, P[t, l]>``, so that a step holds one model and its gradient, not one for each task.

    Attributes:
        base: Name to tensor of the base, of all that the model takes, in its own dtype and on the device.
        parts: Name to the parts of a weight, ``(T, *shape)``, in the base's dtype, on the device or apart from it.
        averaged: Name to the task vectors of what is no weight, such as running statistics, ``(T, *shape)``.
        column: Name to the number of a tensor's layer.
        tied: Further name of a weight to its first one.
        ratio: ``k = |sum_t tau_t| / |sum_t P_t|`` over the model.
    """

    base: Mapping[str, Tensor]
    parts: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor]
    column: Mapping[str, int]
    tied: Mapping[str, str]
    ratio: float

    @classmethod
    def of(
        cls,
        module: MergeModule,
        recipe: MergeRecipe,
        layers: Layers,
        like: Tensor,
        apart: torch.device | None = None,
    ) -> HeldParts:
        """Make them, tensor by tensor.

        Args:
            module: Whose task vectors.
            recipe: With a rule that has parts.
            layers: The layers with merged tensors.
            like: A tensor on the device on which the model runs.
            apart: Where the parts are held; there by default.

        Raises:
            ValueError: The parts or the task vectors add up to nothing; besides, as in `Merge.plan`.
        """
        device = like.device
        vectors, names = module.vectors, installable(module.model, module.vectors)
        options = with_memo({**options_of_parts(module), "device": device}, module.memo)
        merge, execution = Merge.of(vectors, recipe, layers, options)
        plan = merge.plan(execution)
        parts, ratio = _made(plan, vectors, apart or device)
        averaged = Stream.of(vectors, vectors.averaged, execution=Execution(device=device))
        return cls(
            {name: vectors.base(name).to(device) for name in names},
            parts,
            {name: averaged.stack(name) for name in vectors.averaged},
            _columns(vectors, layers),
            {name: first for name, first in vectors.tied.items() if name in names},
            ratio,
        )

    @torch.no_grad()
    def model(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return the tensors that coefficients ``(T, L)`` make; those of weights are leaves that want a gradient."""
        made = dict(self.base)
        for name, parts in self.parts.items():
            own = coefficients[:, self.column[name]]
            made[name] = self._added(name, own, parts.to(own.device)).requires_grad_()
        for name, tau in self.averaged.items():
            # A pruned task counts with the base's, as in a merge.
            kept = (coefficients[:, self.column[name]] > 0) / len(coefficients)
            total = self._added(name, kept, tau)
            made[name] = total.clamp_(min=0) if name.endswith("running_var") else total
        return made | {name: made[first] for name, first in self.tied.items()}

    @torch.no_grad()
    def gradient(self, model: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Return the gradient of the coefficients, ``(T, L)`` as ``like``, from that of the model that they made."""
        total = torch.zeros_like(like)
        for name, parts in self.parts.items():
            if (gradient := model[name].grad) is not None:
                own = parts.to(like.device, like.dtype).flatten(1)
                total[:, self.column[name]] += own @ gradient.to(like.dtype).flatten()
        return total

    def _added(self, name: str, factors: Tensor, parts: Tensor) -> Tensor:
        summed: Tensor = torch.tensordot(factors, parts.to(factors.dtype), dims=1)
        return self.base[name].to(factors.dtype) + summed


def _made(plan: MergePlan, vectors: TaskVectors, device: torch.device) -> tuple[dict[str, Tensor], float]:
    """Return the parts of each weight, and ``k``."""
    found: dict[str, Tensor] = {}
    squares = torch.zeros(2, dtype=torch.float64)
    for name in plan.stream.names:
        parts = plan.parts(name) * plan.jobs[name].scale
        for place, stack in enumerate((plan.stream.stack(name), parts)):
            squares[place] += float(stack.sum(0).double().square().sum())
        found[name] = parts.to(device, _held_dtype(vectors.headers[name].dtype), copy=True)
    vectors.require_unchanged()
    taus, sums = squares.sqrt().tolist()
    if not (taus and sums):
        raise ValueError(f"the {'parts' if taus else 'task vectors'} of all tasks add up to nothing to learn on.")
    return found, taus / sums


def _held_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which parts of a tensor are held: its own, but for those of a byte."""
    return dtype if dtype in (torch.float16, torch.bfloat16, torch.float64) else torch.float32


def _columns(vectors: TaskVectors, layers: Layers) -> dict[str, int]:
    """Return the number of the layer that each tensor belongs to, or goes with."""
    known = set(vectors.averaged) <= set(layers.tensors)
    order: Any = layers.tensors if known else natural_order(vectors.headers)
    return {name: layers.index_of(name) for name in vectors.names} | layers.beside(vectors.averaged, order)

"""WUDI merging."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.functional import directions
from lwptv_lightning.registry import number, patterns, whole
from lwptv_lightning.rules._base import MergeContext, MergeRule, is_matrix, is_pointwise, merge_rule

LINEAR_WEIGHTS = (
    "*attn.in_proj_weight",
    "*attn.qkv.weight",
    "*attn.*proj.weight",
    "*mlp.*proj.weight",
    "*mlp.c_fc.weight",
    "*mlp.fc[12].weight",
)
"""The linear layers of transformer blocks, as open_clip, timm and the common language models name them."""

_FIRST_DECAY, _SECOND_DECAY, _EPSILON = 0.9, 0.999, 1e-8


@merge_rule("wudi", paper="https://arxiv.org/abs/2503.08099")
@dataclass(frozen=True, kw_only=True)
class WUDI(MergeRule):
    """Find, for each linear layer, the matrix that disturbs no task on the inputs its task vector speaks of.

    Minimises ``sum_t |(X - tau_t) tau_t^T|^2 / |tau_t|^2`` over X with Adam, from ``X = sum_t tau_t`` on. The gradient
    is ``2 sum_t (X - tau_t) tau_t^T tau_t / |tau_t|^2``, so a step costs the same for any number of tasks. A zero task
    vector takes no part. The weight ``(out, in, 1, 1)`` of a 1x1
    convolution is a matrix too. Every other tensor stays as it is in the base.

    Args:
        steps: Of Adam, at least 0; 0 is the sum.
        lr: Adam's learning rate, above 0. No weight moves further than about ``steps * lr`` from the sum, whatever the
            scale of the task vectors.
        include: Globs of tensor names; the 2-D ones and the 1x1 convolutions among them are merged. By default the
            linear layers of transformer blocks, which are attention's projections and the MLP's as open_clip, timm and
            Llama name them, and all 1x1 convolutions.

    Example:
        >>> tau = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
        >>> WUDI(lr=0.01, include=("w",)).combine(tau, MergeContext("w", ("a", "b"))).round(decimals=1)
        tensor([[1., 0.]])

    Reference:
        Cheng et al., Whoever started the interference should end it, arXiv 2503.08099. The authors' code knows the
        four kinds of open_clip alone. Deviations: the gradient in closed form, around the sum, which spares autograd;
        a zero task vector is left out, where the authors' code divides by zero.
    """

    tensors = "2-D tensors and 1x1 convolutions of include as matrices; others stay the base's"

    no_parts = "its optimiser divides each step by the gradients of all tasks together"

    steps: int = whole(300)
    lr: float = number(1e-5, "(0, inf)")
    include: tuple[str, ...] | None = patterns(None)

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor is one of the wanted matrices."""
        if self.include is None:
            return is_pointwise(name, shape) or is_matrix(shape, name, LINEAR_WEIGHTS)
        return is_matrix(shape, name, self.include)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Optimise one matrix, ``(T, *shape) -> (*shape)``."""
        if (matrices := self.as_matrices(tau, context)) is None:
            return torch.zeros_like(tau[0])
        total, units = matrices.sum(0), directions(matrices)[0]
        disturbance = ((total - matrices) @ units.mT @ units).sum(0)
        inputs = units.flatten(0, 1)
        curvature = inputs.T @ inputs
        shift, first, second = (torch.zeros_like(total) for _ in range(3))
        for step in range(1, self.steps + 1):
            gradient = 2 * (disturbance + shift @ curvature)
            first.lerp_(gradient, 1 - _FIRST_DECAY)
            second.lerp_(gradient.square(), 1 - _SECOND_DECAY)
            spread = (second / (1 - _SECOND_DECAY**step)).sqrt_().add_(_EPSILON)
            shift.addcdiv_(first, spread, value=-self.lr / (1 - _FIRST_DECAY**step))
        return (total + shift).reshape(tau.shape[1:])

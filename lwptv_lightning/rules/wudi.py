"""WUDI merging."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor
from torch.optim.adam import adam

from lwptv_lightning.functional import directions, own_row_terms
from lwptv_lightning.registry import choice, number, patterns, whole
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

# Each step is one operation, which reads every tensor once.
_step = partial(adam, fused=True, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False)


@merge_rule("wudi", paper="https://arxiv.org/abs/2503.08099")
@dataclass(frozen=True, kw_only=True)
class WUDI(MergeRule):
    """Find, for each linear layer, the matrix that disturbs no task on the inputs its task vector speaks of.

    Minimises ``sum_t |(X - tau_t) tau_t^T|^2 / |tau_t|^2`` over X with Adam, from ``X = sum_t tau_t`` on. The gradient
    is ``2 sum_t (X - tau_t) tau_t^T tau_t / |tau_t|^2``, so a step costs the same for any number of tasks. A zero task
    vector takes no part. The weight ``(out, in, 1, 1)`` of a 1x1 convolution is a matrix too.

    With ``solver="closed_form"`` the result is the shortest X that minimises it, `ACTMat` with ``weights="norm"``. Adam
    ends far from that: 300 steps of 1e-5 move a weight by 0.003 at most. Like ACTMat it blows up where ``T * out`` is
    about ``in``, by as much as ``rtol`` lets it.

    Args:
        solver: ``"adam"``, or ``"closed_form"``, which is a sum over tasks.
        steps: Of Adam, at least 0; 0 is the sum.
        lr: Adam's learning rate, above 0. No weight moves further than about ``steps * lr`` from the sum, whatever the
            scale of the task vectors.
        rtol: In [0, 1), of the closed form: directions that are weaker are dropped, see `ACTMat`.
        include: Globs of tensor names; the 2-D ones and the 1x1 convolutions among them are merged. By default the
            linear layers of transformer blocks, which are attention's projections and the MLP's as open_clip, timm and
            Llama name them, and all 1x1 convolutions; in closed form all matrices whose names do not hold
            ``text_projection``.
        exclude: Globs of tensor names that are not merged although they are among these.
        others: What becomes of all other tensors: ``"base"`` leaves them as they are in the base, ``"mean"`` averages
            them. By default the base with Adam, the mean in closed form.

    Raises:
        ValueError: ``rtol`` is given with Adam, or ``steps`` or ``lr`` with the closed form.

    Example:
        >>> tau = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
        >>> WUDI(lr=0.01, include=("w",)).combine(tau, MergeContext("w", ("a", "b"))).round(decimals=1)
        tensor([[1., 0.]])
        >>> WUDI(solver="closed_form").combine(tau, MergeContext("w", ("a", "b")))
        tensor([[1., 0.]])

    Reference:
        Cheng et al., Whoever started the interference should end it, arXiv 2503.08099. The authors' code knows the
        four kinds of open_clip alone. Deviations: the gradient in closed form, around the sum, which spares autograd;
        a zero task vector is left out, where the authors' code divides by zero. The closed form is not the authors';
        others' code solves for it with a ridge in float32, which fails where ``T * out < in``.
    """

    tensors = "2-D tensors and 1x1 convolutions of include as matrices; others stay the base's, or as `others` says"

    no_parts = "its optimiser divides each step by the gradients of all tasks together; solver='closed_form' is one"

    solver: str = choice("adam", ("adam", "closed_form"))
    steps: int = whole(300)
    lr: float = number(1e-5, "(0, inf)")
    rtol: float | None = number(None, "[0, 1)")
    include: tuple[str, ...] | None = patterns(None)
    exclude: tuple[str, ...] = patterns(())
    others: str | None = choice(None, ("base", "mean"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rtol is not None and not self.is_sum:
            raise ValueError(f"rtol is of solver='closed_form'; {self.solver!r} has none, so leave it out.")
        usual = {"steps": type(self).steps, "lr": type(self).lr}
        if self.is_sum and (given := [name for name in usual if getattr(self, name) != usual[name]]):
            raise ValueError(f"{' and '.join(given)} is of solver='adam'; {self.solver!r} has none, so leave it out.")

    @classmethod
    def has_parts(cls) -> bool:
        """Tell whether it is a sum over tasks by default."""
        return False

    @property
    def is_sum(self) -> bool:
        """Whether it is solved in closed form."""
        return self.solver == "closed_form"

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor is one of the wanted matrices."""
        if not is_matrix(shape, name, exclude=self.exclude):
            return False
        if self.include is not None:
            return is_matrix(shape, name, self.include)
        if self.is_sum:
            return "text_projection" not in name
        return is_pointwise(name, shape) or is_matrix(shape, name, LINEAR_WEIGHTS)

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task's term of the closed form, ``(T, *shape)``; Adam's result has none."""
        if not self.is_sum:
            return super().parts(tau, context)
        if (matrices := self.as_matrices(tau, context)) is None:
            return torch.zeros_like(tau) if self._leaves_others else tau / len(tau)
        terms = own_row_terms(matrices, self.rtol, unit=True)
        return torch.stack([term.to(tau.dtype) for term in terms]).reshape(tau.shape)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Merge one stack, ``(T, *shape) -> (*shape)``."""
        if (matrices := self.as_matrices(tau, context)) is None:
            return torch.zeros_like(tau[0]) if self._leaves_others else tau.mean(0)
        if self.is_sum:
            terms = own_row_terms(matrices, self.rtol, unit=True)
            return reduce(torch.add, terms).to(tau.dtype).reshape(tau.shape[1:])
        return descended(matrices, self.steps, self.lr).reshape(tau.shape[1:])

    @property
    def _leaves_others(self) -> bool:
        return self.others == "base" or (self.others is None and not self.is_sum)


def descended(matrices: Tensor, steps: int, lr: float) -> Tensor:
    """Let Adam find the matrix that disturbs the tasks least, ``(T, m, n) -> (m, n)``, from their sum on."""
    total, kept = matrices.sum(0), matrices[(matrices.flatten(1) != 0).any(1)]
    if len(kept) <= 1:  # it disturbs nobody
        return total
    units = directions(kept)[0]
    inputs = units.flatten(0, 1)
    disturbance = 2 * ((total - kept) @ units.mT @ units).sum(0)
    # Few rows are multiplied one after the other: their product may be far larger than they are.
    curvature = [2 * inputs.T, inputs] if 2 * len(inputs) < inputs.shape[1] else [2 * inputs.T @ inputs]
    shift, gradient, first, second = (torch.zeros_like(total) for _ in range(4))
    count = torch.zeros((), dtype=torch.float32, device=total.device)
    for _ in range(steps):
        moved = shift @ curvature[0] if len(curvature) > 1 else shift
        torch.addmm(disturbance, moved, curvature[-1], out=gradient)
        _step([shift], [gradient], [first], [second], [], [count], lr=lr)
    return total + shift

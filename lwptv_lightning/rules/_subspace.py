"""Any rule that works on elements, inside the space that the task vectors of each matrix share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.engine import Once, Stream
from lwptv_lightning.functional import common_basis
from lwptv_lightning.registry import patterns
from lwptv_lightning.rules._base import MergeContext, MergeRule, is_matrix
from lwptv_lightning.task_vectors import HeldStack, Stack


@dataclass(frozen=True, kw_only=True)
class InSubspace(MergeRule[Any]):
    """A rule that sees each matrix in the basis that its tasks share, and nothing else.

    With the T task vectors of a matrix side by side, ``[tau_1 ... tau_T] = U diag(s) [V_1 ... V_T]``, of which singular
    values above 1e-5 stay, task t becomes ``diag(s) V_t = U^T tau_t``, of shape ``(r, n)``. The rule surveys these of
    all matrices as one model, and combines those of one; U maps its result, or its parts, back. The zeros of a task
    that is pruned are zeros there too. Other tensors stay as they are in the base.

    What a rule draws at random for an element, it draws for an element of ``U^T tau_t``: by its place in that, and by
    the names of tensor and task.

    It is in no registry: a recipe's ``subspace`` and `knots_ties` put a rule there.

    Args:
        rule: A rule for which `MergeRule.why_no_subspace` finds nothing.
        include: Globs of tensor names; the 2-D ones and the 1x1 convolutions among them are merged.
    """

    tensors = "2-D tensors and 1x1 convolutions of include in the space that their tasks share; others stay the base's"
    treats = "in the space that their tasks share"

    paper = ""
    published_scale = 1.0

    rule: MergeRule[Any]
    include: tuple[str, ...] = patterns(("*.weight",))

    @property
    def name(self) -> str:  # type: ignore[override]
        """What it is called in messages."""
        return self.rule.name

    @property
    def is_sum(self) -> bool:
        """Whether the rule is a sum over tasks as it is set."""
        return self.rule.is_sum

    def surveys_model(self) -> bool:  # type: ignore[override]
        """Tell whether the rule looks at the whole model before it combines a single tensor."""
        return self.rule.surveys_model()

    def doubt(self, tasks: int) -> str | None:
        """Return why a merge of a number of tasks may not be what is wanted."""
        return self.rule.doubt(tasks)

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor is one of the wanted matrices."""
        return is_matrix(shape, name, self.include)

    def survey(self, stream: Stream) -> Any:
        """Survey the matrices in their tasks' space as the rule does; None where there are none."""
        if not self.rule.surveys_model():
            return None
        inside = _inside(stream, self.matrices(stream))
        return self.rule.survey(inside) if inside.names else None

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return U times what the rule makes of each task, ``(T, *shape)``."""
        found = self._enter(tau, context)
        if found is None:
            return torch.zeros_like(tau)
        basis, inside = found
        return _mapped_back(basis, self.rule.parts(inside, context), tau).reshape(tau.shape)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return U times what the rule makes of the stack, ``(T, *shape) -> (*shape)``."""
        found = self._enter(tau, context)
        if found is None:
            return torch.zeros_like(tau[0])
        basis, inside = found
        return _mapped_back(basis, self.rule.combine(inside, context), tau).reshape(tau.shape[1:])

    def _enter(self, tau: Tensor, context: MergeContext) -> tuple[Tensor, Tensor] | None:
        """Return the basis of a matrix and its stack in that; None where there is no such space."""
        matrices = self.as_matrices(tau, context)
        if matrices is None:
            return None
        basis = context.once(common_basis, matrices)
        return (basis, _in_basis(basis, matrices)) if basis.shape[1] else None


def _inside(stream: Stream, names: Iterable[str]) -> Stream:
    """Return the matrices of some names, each in the basis that its tasks share; those without any are left out."""

    def open_stack(name: str) -> Stack:
        matrices = stream.stack(name).flatten(2)
        inside = _in_basis(_basis(matrices, stream.once), matrices)
        return HeldStack(inside, torch.zeros(()).expand(inside.shape[1:]))

    def shape_of(name: str) -> tuple[int, int]:
        matrices = stream.stack(name).flatten(2)
        return _basis(matrices, stream.once).shape[1], matrices.shape[2]

    shapes = {name: shape for name, shape in stream.each(shape_of, names).items() if shape[0]}
    return replace(stream, shapes=shapes, open_stack=open_stack)


def _basis(matrices: Tensor, once: Once) -> Tensor:
    return once(common_basis, matrices)


def _in_basis(basis: Tensor, matrices: Tensor) -> Tensor:
    """Return ``U^T tau_t`` of each task, ``(T, m, n) -> (T, r, n)``."""
    return (basis.T @ matrices.double()).to(matrices.dtype)


def _mapped_back(basis: Tensor, made: Tensor, like: Tensor) -> Tensor:
    return (basis @ made.double()).to(like.dtype)

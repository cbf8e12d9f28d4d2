"""KnOTS-TIES."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lwptv_lightning.engine import Stream
from lwptv_lightning.registry import choice, number, patterns
from lwptv_lightning.rules._base import MergeContext, MergeRule, is_matrix, merge_rule
from lwptv_lightning.rules._trim import TrimSurvey, survey_trim, trim_elect_merge_, trim_elect_parts_
from lwptv_lightning.task_vectors import HeldStack, Stack

_LEAST_SINGULAR_VALUE = 1e-5


@merge_rule("knots_ties", paper="https://arxiv.org/abs/2410.19735", scale=0.6)
@dataclass(frozen=True, kw_only=True)
class KnOTSTIES(MergeRule[TrimSurvey]):
    """Express the task vectors of a matrix in a basis that they share, and merge them there with TIES.

    With the T task vectors side by side, ``[tau_1 ... tau_T] = U diag(s) [V_1 ... V_T]``, of which singular values
    above 1e-5 stay, task t becomes ``diag(s) V_t = U^T tau_t``. TIES merges these, trimming over all matrices of the
    model together, and U maps the result back. The weight ``(out, in, 1, 1)`` of a 1x1 convolution is a matrix too.
    Every other tensor stays as it is in the base.

    So that no basis is kept, each pass over the model, of which there are five in float32, decomposes anew.

    Args:
        density: The fraction to keep, in (0, 1]; 1 trims nothing.
        reduce: ``"mean"`` over the entries that agree, their ``"sum"``, or the ``"max"``.
        include: Globs of tensor names; the 2-D ones and the 1x1 convolutions among them are merged.

    Example:
        >>> from lwptv_lightning import MergeRecipe, TaskVectors, merge
        >>> tasks = {"a": {"fc.weight": torch.tensor([[4.0, 0.0]])}, "b": {"fc.weight": torch.tensor([[2.0, -1.0]])}}
        >>> vectors = TaskVectors.open({"fc.weight": torch.zeros(1, 2)}, tasks)
        >>> merge(vectors, MergeRecipe(rule=KnOTSTIES(density=1), scale=1.0))["fc.weight"]
        tensor([[ 3., -1.]])

    Reference:
        Stoica et al., Model merging with SVD to tie the knots, arXiv 2410.19735, with the trim and the vote of TIES.
        Deviations: full weights, where the authors merge LoRA updates; ``U^T tau_t`` in place of ``diag(s) V_t``, the
        same but for rounding, so that zeros of a task vector stay zeros.
    """

    tensors = "2-D tensors and 1x1 convolutions of include as matrices; others stay the base's"

    density: float = number(0.2, "(0, 1]")
    reduce: str = choice("mean", ("mean", "sum", "max"))
    include: tuple[str, ...] = patterns(("*.weight",))

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor is one of the wanted matrices."""
        return is_matrix(shape, name, self.include)

    def survey(self, stream: Stream) -> TrimSurvey | None:
        """Survey the aligned task vectors as TIES does; None where there are none."""
        matrices = aligned(stream, self.matrices(stream))
        return survey_trim(matrices, self.density) if matrices.names else None

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return U times each task's part of what TIES merges, ``(T, *shape)``."""
        matrices = self.as_matrices(tau, context)
        if context.survey is None or matrices is None:
            return torch.zeros_like(tau)
        basis, coordinates = align(matrices)
        return (basis @ trim_elect_parts_(coordinates, context.survey, self.reduce)).reshape(tau.shape)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Align, merge and map back one stack, ``(T, *shape) -> (*shape)``."""
        matrices = self.as_matrices(tau, context)
        if context.survey is None or matrices is None:
            return torch.zeros_like(tau[0])
        basis, coordinates = align(matrices)
        return (basis @ trim_elect_merge_(coordinates, context.survey, self.reduce)).reshape(tau.shape[1:])


def aligned(stream: Stream, names: Iterable[str]) -> Stream:
    """Return the matrices of some names among the task vectors, each in the basis that its tasks share."""
    shapes = stream.each(lambda name: tuple(align(stream.stack(name).flatten(2))[1].shape[1:]), names)
    left = {name: shape for name, shape in shapes.items() if shape[0]}

    def open_stack(name: str) -> Stack:
        return HeldStack(align(stream.stack(name).flatten(2))[1], torch.zeros(()).expand(left[name]))

    return replace(stream, shapes=left, open_stack=open_stack)


def align(tau: Tensor) -> tuple[Tensor, Tensor]:
    """Return the basis of the tasks' joint column space, ``(m, r)``, and tau in it, ``(T, m, n) -> (T, r, n)``."""
    exact = tau.double()
    left, values, _ = torch.linalg.svd(torch.cat([*exact], dim=1), full_matrices=False)
    basis = left[:, values > _LEAST_SINGULAR_VALUE]
    return basis.to(tau.dtype), (basis.T @ exact).to(tau.dtype)

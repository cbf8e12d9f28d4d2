"""KnOTS-TIES."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.engine import Stream
from lwptv_lightning.registry import choice, number, patterns
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule
from lwptv_lightning.rules._subspace import InSubspace
from lwptv_lightning.rules._trim import TrimSurvey
from lwptv_lightning.rules.ties import TIES


@merge_rule("knots_ties", paper="https://arxiv.org/abs/2410.19735", scale=0.6)
@dataclass(frozen=True, kw_only=True)
class KnOTSTIES(MergeRule[TrimSurvey]):
    """Express the task vectors of a matrix in a basis that they share, and merge them there with TIES.

    With the T task vectors side by side, ``[tau_1 ... tau_T] = U diag(s) [V_1 ... V_T]``, of which singular values
    above 1e-5 stay, task t becomes ``diag(s) V_t = U^T tau_t``. TIES merges these, trimming over all matrices of the
    model together, and U maps the result back. The weight ``(out, in, 1, 1)`` of a 1x1 convolution is a matrix too.
    Every other tensor stays as it is in the base. ``MergeRecipe(TIES(density=0.2), scale=0.6, subspace="knots")`` is
    the same; `KnOTS` puts other rules there.

    Args:
        density: The fraction to keep, in (0, 1]; 1 trims nothing.
        reduce: ``"mean"`` over the entries that agree, their ``"sum"``, or the ``"max"``.
        include: Globs of tensor names; the 2-D ones and the 1x1 convolutions among them are merged.

    Example:
        >>> import torch
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

    @property
    def _inside(self) -> InSubspace:
        return InSubspace(rule=TIES(density=self.density, reduce=self.reduce), include=self.include)

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor is one of the wanted matrices."""
        return self._inside.treats_as_matrix(name, shape, tasks)

    def survey(self, stream: Stream) -> TrimSurvey | None:
        """Survey the task vectors in their space as TIES does; None where there are none."""
        survey: TrimSurvey | None = self._inside.survey(stream)
        return survey

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return U times each task's part of what TIES merges, ``(T, *shape)``."""
        return self._inside.parts(tau, context)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Merge one stack in its space and map it back, ``(T, *shape) -> (*shape)``."""
        return self._inside.combine(tau, context)

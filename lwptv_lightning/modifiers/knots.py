"""KnOTS: rules inside the space that the task vectors of each matrix share."""

from dataclasses import dataclass

from lwptv_lightning.modifiers._base import Subspace, modifier
from lwptv_lightning.registry import patterns


@modifier("knots", paper="https://arxiv.org/abs/2410.19735")
@dataclass(frozen=True, kw_only=True)
class KnOTS(Subspace):
    """Let a rule see each matrix in an orthonormal basis of the columns of all its task vectors.

    With the T task vectors of a matrix side by side, ``[tau_1 ... tau_T] = U diag(s) [V_1 ... V_T]``, of which singular
    values above 1e-5 stay, the rule works on ``U^T tau_t = diag(s) V_t``, ``(T, r, n)``; U maps its result back, or its
    parts, which masks and coefficients then act on. What the rule looks up in the whole model, such as a threshold, it
    looks up in these of all matrices together. Rules that draw at random draw for the elements of ``U^T tau_t``: by
    their place there, and by the names of tensor and task. The zeros of a pruned task are zeros there too. Every tensor
    that is no wanted matrix stays as it is in the base.

    Of directions with the same singular value no basis is the right one; there, what a rule makes of single elements
    hangs on which one is found. A sign is settled: the largest entry of each direction is positive.

    Rules that treat matrices in a way of their own, need data or make a model for each task are refused.

    Args:
        include: Globs of tensor names; the 2-D ones and the 1x1 convolutions among them are merged.

    Example:
        >>> import torch
        >>> from lwptv_lightning import MergeRecipe, TaskVectors, merge
        >>> tasks = {"a": {"w": torch.tensor([[1.0, 1.0], [1.0, 1.0]])}, "b": {"w": torch.tensor([[2.0, 0], [2, 0]])}}
        >>> vectors = TaskVectors.open({"w": torch.zeros(2, 2)}, tasks)
        >>> merge(vectors, MergeRecipe("magmax", 1.0, subspace=KnOTS(include=("w",))))["w"]
        tensor([[2., 1.],
                [2., 1.]])

    Reference:
        Stoica et al., Model merging with SVD to tie the knots, arXiv 2410.19735; see `knots_ties`, which is TIES there.
        Deviations: full weights, where the authors merge LoRA updates; ``U^T tau_t`` in place of ``diag(s) V_t``, the
        same but for rounding, so that zeros of a task vector stay zeros.
    """

    include: tuple[str, ...] = patterns(("*.weight",))

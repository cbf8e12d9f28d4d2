"""Subspace boosting."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.functional import Triplets, inverses
from lwptv_lightning.layers import is_matrix
from lwptv_lightning.modifiers._base import Calibration, modifier
from lwptv_lightning.registry import fraction, matches, number, patterns, shown

_FUSED = 3
"""Queries, keys and values."""


@modifier("subspace_boosting", paper="https://arxiv.org/abs/2506.16506")
@dataclass(frozen=True, kw_only=True)
class SubspaceBoosting(Calibration):
    """Raise the weak singular values of a merged matrix to the one at which a share of their sum is reached.

    With singular values ``s_1 >= s_2 >= ...`` and the first i with ``s_1 + ... + s_i >= beta sum(s)``, each becomes
    ``max(s, s_i)``. Where s_1 alone is the share beta of the sum, which 0.01 is for every matrix with a side of at most
    100 and for most others, all become s_1: that is Iso-C with another scale. Matrices are 2-D tensors and the weights
    ``(out, in, 1, 1)`` of 1x1 convolutions; other tensors stay as rule and scale made them.

    Args:
        beta: The share of the sum, in [0, 1]; 0 raises all to s_1, and 1 changes nothing.
        scale: What the boosted matrix is multiplied with afterwards.
        include: Globs of the names of tensors that are boosted if they are matrices.
        exclude: Globs of those that are not.
        split: Globs of the weights of queries, keys and values in one, thirds of whose rows are boosted apart.

    Raises:
        ValueError: 3 does not divide the rows of a matrix of ``split``; as a merge is planned.

    Example:
        >>> from lwptv_lightning import MergeRecipe, TaskVectors, merge
        >>> task = {"w": torch.diag(torch.tensor([5.0, 3.0, 2.0, 0.0]))}
        >>> vectors = TaskVectors.open({"w": torch.zeros(4, 4)}, {"a": task})
        >>> recipe = MergeRecipe("task_arithmetic", scale=1.0, calibrate=SubspaceBoosting(beta=0.6))
        >>> merge(vectors, recipe)["w"].diagonal()
        tensor([5., 3., 3., 0.])

    Reference:
        Subspace boosting, arXiv 2506.16506; no code of its authors' is known, FusionBench's is followed, which boosts
        the sum of the task vectors and an own list of names: attention and MLP weights, queries, keys and values in one
        apart. Deviations: directions without weight stay zero, where FusionBench raises arbitrary ones; all matrices
        are boosted by default, and whole.
    """

    beta: float = fraction(0.01)
    scale: float = number(1.0, "(-inf, inf)")
    include: tuple[str, ...] = patterns(("*",))
    exclude: tuple[str, ...] = patterns(())
    split: tuple[str, ...] = patterns(())

    def treats(self, name: str, shape: Sequence[int]) -> bool:
        """Tell whether a tensor is a matrix that is wanted."""
        return is_matrix(shape, name, self.include, self.exclude)

    def row_blocks(self, name: str, shape: Sequence[int]) -> int:
        """Return 3 for a weight of queries, keys and values, else 1."""
        if not matches(name, self.split):
            return 1
        if shape[0] % _FUSED:
            rows = f"{shown(name)} has {shape[0]} rows"
            raise ValueError(f"split: {rows}, which are no queries, keys and values of as many rows each.")
        return _FUSED

    def gains(self, merged: Triplets, tau: Tensor) -> Tensor:
        """Return ``max(s, s_i) / s``, ``(r,)``; 0 for directions without weight."""
        values = merged.values
        if not values.numel():
            return torch.ones_like(values)
        reached = values.cumsum(0)
        weak = values[(reached < self.beta * reached[-1]).sum()]
        return torch.maximum(values, weak) * inverses(values)

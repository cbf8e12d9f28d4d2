"""MonoSoup: the strong singular directions of each task vector weigh more than the weak ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.engine import Once
from lwptv_lightning.functional import decompose
from lwptv_lightning.modifiers._base import Reweighting, modifier
from lwptv_lightning.registry import choice, matches, number, patterns

_THRESHOLD = 0.8


@modifier("monosoup", paper="https://arxiv.org/abs/2602.09689")
@dataclass(frozen=True, kw_only=True)
class MonoSoup(Reweighting):
    """Divide each task vector of a tensor into its strong and its weak singular directions, and weigh both.

    A tensor of two or more dimensions is the matrix ``(shape[0], rest)``, with singular values ``s_1 >= s_2 >= ...``.
    The first k directions are strong. With the effective rank, k is ``exp(-sum_i p_i log p_i)`` rounded up, where
    ``p_i = s_i / sum_i s_i``; with the variance, it is the least that holds a share of ``sum_i s_i^2``. With the share
    ``P`` that they do hold and ``rho = (s_{k+1} / s_1)^2``, the weak ones are multiplied by
    ``low = rho + (1 - rho) sqrt(1 - P)`` and the strong ones by ``1 - low``. Where all directions are strong, as of a
    matrix of one row, nothing changes; nor does it in other tensors.

    It needs one task alone: ``MergeRecipe("simple_average", reweight="monosoup")`` of one expert is that one, edited.
    The result is smaller, by a tenth in CLIP and by half with the variance, so that with other rules another scale may
    be better.

    Args:
        version: How many directions are strong.
        threshold: The share of ``"variance"``, by default 0.8; that of the paper's ConvNeXt is 0.9.
        min_rel_update: A task vector whose norm is a smaller part of the base's stays as it is. The authors' code has
            1e-6 for CLIP and 1e-2 for ConvNeXt.
        exclude: Globs of tensor names that stay as they are.

    Raises:
        ValueError: A number is out of its range, or a threshold stands beside the effective rank.

    Example:
        >>> from lwptv_lightning.engine import anew
        >>> delta = torch.diag(torch.tensor([4.0, 2.0, 0.0]))
        >>> MonoSoup().reweighted(delta, torch.ones(3, 3), anew)  # of effective rank 1.9, which is rounded up to 2
        tensor([[4., 0., 0.],
                [0., 2., 0.],
                [0., 0., 0.]])
        >>> MonoSoup(version="variance").reweighted(delta, torch.ones(3, 3), anew).diag()
        tensor([1.6584, 1.1708, 0.0000])

    Reference:
        MonoSoup, arXiv 2602.09689. Deviations: the authors' code leaves task vectors whose squares add up to less than
        1e-12 as they are, whatever the size of the base's weights; here what is small beside the base stays, and all
        of a base of zeros is reweighted. Directions that are rounding of the strongest do not count as directions.
    """

    version: str = choice("effective_rank", ("effective_rank", "variance"))
    threshold: float | None = number(None, "(0, 1]")
    min_rel_update: float = number(1e-6, "[0, inf)")
    exclude: tuple[str, ...] = patterns(())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and self.version != "variance":
            raise ValueError(f"threshold is that of version='variance', and has no meaning with {self.version!r}.")

    def treats(self, name: str, shape: Sequence[int]) -> bool:
        """Tell whether a tensor is a matrix of at least two rows and columns, once its last dimensions are one."""
        return len(shape) > 1 and shape[0] > 1 and math.prod(shape[1:]) > 1 and not matches(name, self.exclude)

    def reweighted(self, delta: Tensor, base: Tensor, once: Once) -> Tensor:
        """Return one task vector of one tensor, ``(*shape) -> (*shape)``."""
        size = _norm(delta)
        if size == 0 or size < self.min_rel_update * _norm(base):
            return delta
        left, values, right = once(decompose, delta.flatten(1))
        shares = values / values[0]
        strong = self._strong(shares)
        if not shares[strong:].any():
            return delta
        rho, energies = float(shares[strong]) ** 2, shares.square()
        low = rho + (1 - rho) * math.sqrt(float(energies[strong:].sum() / energies.sum()))
        kept = left[:, :strong] * values[:strong] @ right[:strong]
        return kept.mul_(1 - 2 * low).add_(delta.flatten(1), alpha=low).to(delta.dtype).reshape(delta.shape)

    def _strong(self, shares: Tensor) -> int:
        """Return how many directions are strong, of values beside the largest."""
        if self.version == "variance":
            held = shares.square().cumsum(0)
            wanted = _THRESHOLD if self.threshold is None else self.threshold
            count = int((held < wanted * held[-1]).sum()) + 1
        else:
            count = math.ceil(math.exp(float(torch.special.entr(shares / shares.sum()).sum())))
        return min(max(count, 1), len(shares))


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double()))

"""Karcher mean."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.functional import NEGLIGIBLE, directions
from lwptv_lightning.registry import number, whole
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("karcher", paper="https://doi.org/10.1002/cpa.3160300502")
@dataclass(frozen=True, kw_only=True)
class Karcher(MergeRule):
    """Average the directions of the task vectors on the sphere, and their lengths: ``mean_t |tau_t| u``.

    u is the point of the unit sphere with the least sum of squared angles to the directions. From their normalised mean
    on, each step goes along the mean of ``a_t (u_t - cos(a_t) u) / sin(a_t)``, where a_t is the angle from u to u_t.

    Args:
        max_iter: How many steps at most, at least 0.
        tol: At least 0; task vectors no longer than this have a length but no direction, shorter steps are the last.

    Example:
        >>> Karcher().combine(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), MergeContext("w", ("a", "b")))
        tensor([1.4142, 1.4142])

    Reference:
        Karcher, Riemannian center of mass, 1977; settings as in mergekit's ``karcher``, on task vectors instead of
        weights. Where the directions cancel, the search starts at the first of them, as there. Deviations: float64, as
        nearly opposite directions amplify rounding; one exactly opposite to u has no tangent and is passed over.
    """

    max_iter: int = whole(10)
    tol: float = number(1e-5, "[0, inf)")

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Merge one stack, ``(T, *shape) -> (*shape)``."""
        if len(tau) == 1:
            return tau[0]
        units, norms = directions(tau.double())
        units = units.reshape(len(tau), -1)[norms > self.tol]
        if not len(units):
            return torch.zeros_like(tau[0])
        mean = units.mean(0)
        mean = units[0] if mean.norm() <= max(self.tol, NEGLIGIBLE) else mean / mean.norm()
        for _ in range(self.max_iter):
            cosines = units @ mean
            away = units - cosines[:, None] * mean
            sines = away.norm(dim=1)
            angles = torch.atan2(sines, cosines)
            moving = (angles >= self.tol) & (sines > NEGLIGIBLE)
            tangent = (away * torch.where(moving, angles / sines, 0)[:, None]).mean(0)
            length = tangent.norm()
            if length <= self.tol:
                break
            mean = length.cos() * mean + length.sin() * tangent / length
            mean = mean / mean.norm()
        return (norms.mean() * mean).reshape(tau.shape[1:]).to(tau.dtype)

"""Karcher mean."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.functional import NEGLIGIBLE, directions, per_row
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

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each direction times its coefficient in u and the mean of the lengths, ``(T, *shape)``."""
        if len(tau) == 1:
            return tau
        units, norms = directions(tau.double())
        long = norms > self.tol
        factors = torch.zeros_like(norms)
        if long.any():
            factors[long] = norms.mean() * self._mean(units.reshape(len(tau), -1)[long])[1]
        return (units * per_row(factors, units)).to(tau.dtype)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Merge one stack, ``(T, *shape) -> (*shape)``."""
        if len(tau) == 1:
            return tau[0]
        units, norms = directions(tau.double())
        units = units.reshape(len(tau), -1)[norms > self.tol]
        if not len(units):
            return torch.zeros_like(tau[0])
        return (norms.mean() * self._mean(units)[0]).reshape(tau.shape[1:]).to(tau.dtype)

    def _mean(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """Return u, ``(n,)``, and the coefficients with which the directions ``(T, n)`` sum to it, ``(T,)``."""
        mean = units.mean(0)
        cancel = mean.norm() <= max(self.tol, NEGLIGIBLE)
        factors = torch.full_like(units[:, 0], 1 / len(units))
        if cancel:
            factors = torch.zeros_like(factors)
            factors[0] = 1
        else:
            factors = factors / mean.norm()
        mean = units[0] if cancel else mean / mean.norm()
        for _ in range(self.max_iter):
            cosines = units @ mean
            away = units - cosines[:, None] * mean
            sines = away.norm(dim=1)
            angles = torch.atan2(sines, cosines)
            moving = (angles >= self.tol) & (sines > NEGLIGIBLE)
            pulls = torch.where(moving, angles / sines, 0)
            tangent = (away * pulls[:, None]).mean(0)
            length = tangent.norm()
            if length <= self.tol:
                break
            towards = (pulls - pulls @ cosines * factors) / len(units)
            factors = length.cos() * factors + length.sin() * towards / length
            mean = length.cos() * mean + length.sin() * tangent / length
            factors, mean = factors / mean.norm(), mean / mean.norm()
        return mean, factors

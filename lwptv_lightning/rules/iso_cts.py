"""Iso-CTS: isotropic merging in common and task-specific subspaces."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.functional import (
    Triplets,
    inverse_root,
    inverses,
    leading_triplets,
    polar_factor,
    sum_tasks,
)
from lwptv_lightning.registry import number, patterns
from lwptv_lightning.rules._base import MergeContext, MergeRule, is_matrix, merge_rule


@merge_rule("iso_cts", paper="https://arxiv.org/abs/2502.04959")
@dataclass(frozen=True, kw_only=True)
class IsoCTS(MergeRule):
    """Like Iso-C, with the weakest directions of the sum replaced by what each task has beyond the strong ones.

    Of a matrix's ``m = min(shape)`` singular triplets, the sum of the task vectors gives the c strongest,
    ``U_c diag(s_c) V_c``, and each task the ``(m - c) / T`` strongest of ``tau_t - U_c U_c^T tau_t``. With all side by
    side as ``U diag(s) V``, the result is ``mean(s)`` times the polar factors of U and V. Matrices are 2-D
    tensors and the weights ``(out, in, 1, 1)`` of 1x1 convolutions; other tensors are averaged.

    Args:
        common_fraction: The fraction c / m, in [0, 1]; c is rounded so that T divides ``m - c``. 1 is Iso-C.
        exclude: Globs of tensor names that are averaged although they are matrices.

    Example:
        >>> tau = torch.tensor([[[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]])
        >>> IsoCTS(common_fraction=0).combine(tau, MergeContext("w", ("a", "b")))
        tensor([[3., 0.],
                [0., 3.]])

    Reference:
        Marczak et al., No task left behind, arXiv 2502.04959. The authors' code averages names that hold
        ``text_projection``: ``exclude=("*text_projection*",)``. As there, ``(m - c) / T`` is rounded half to even, and
        the common space is taken away on the left only. Deviations: c is never below 0, where rounding up would ask
        for more than m; directions without weight stay zero instead of arbitrary.
    """

    tensors = "2-D tensors and 1x1 convolutions as matrices; others averaged"
    is_isotropic = True

    common_fraction: float = number(0.8, "[0, 1]")
    exclude: tuple[str, ...] = patterns(())

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor is a matrix that is not excluded."""
        return is_matrix(shape, name, exclude=self.exclude)

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task's part, ``(T, *shape)``.

        With the right vectors of a task's own directions, and ``diag(1 / s_c) U_c^T tau_t`` for its share of the common
        ones, as rows, this is ``mean(s) polar(U) (V V^T)^(-1/2)`` times them.
        """
        if (matrices := self.as_matrices(tau, context)) is None:
            return tau / len(tau)
        exact = matrices.double()
        (left, values, right), (lefts, spectra, rights) = self._directions(exact, context, tau.dtype)
        mean = torch.cat([spectra.flatten(), values]).mean()
        polar = polar_factor(torch.cat([*lefts, left], dim=1), tau.dtype)
        mixed = mean * polar @ inverse_root(torch.cat([*rights, right], dim=0), tau.dtype)
        *own, common = torch.split(mixed, [*[rights.shape[1]] * len(tau), len(values)], dim=1)
        shares = inverses(values)[:, None] * (left.mT @ exact)
        made = [of_task @ rows + common @ share for of_task, rows, share in zip(own, rights, shares, strict=True)]
        return torch.stack(made).to(tau.dtype).reshape(tau.shape)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Merge one stack, ``(T, *shape) -> (*shape)``."""
        if (matrices := self.as_matrices(tau, context)) is None:
            return tau.mean(0)
        (left, values, right), (lefts, spectra, rights) = self._directions(matrices.double(), context, tau.dtype)
        mean = torch.cat([spectra.flatten(), values]).mean()
        polar = polar_factor(torch.cat([*lefts, left], dim=1), tau.dtype)
        merged = polar @ polar_factor(torch.cat([*rights, right], dim=0), tau.dtype)
        return (mean * merged).to(tau.dtype).reshape(tau.shape[1:])

    def _directions(self, exact: Tensor, context: MergeContext, source: torch.dtype) -> tuple[Triplets, Triplets]:
        """Return the common triplets of matrices ``(T, m, n)``, and those of each task beyond them."""
        common, own = self._sizes(min(exact.shape[1:]), len(exact))
        strongest = context.decompose(sum_tasks(exact).to(source)).first(common)
        left = strongest[0]
        beyond = exact - left @ (left.T @ exact)
        return strongest, leading_triplets(beyond, own, exact.flatten(1).norm(dim=1), source)

    def _sizes(self, total: int, tasks: int) -> tuple[int, int]:
        """Return how many triplets the sum gives and how many each task does."""
        own = min(round((total - int(total * self.common_fraction)) / tasks), total // tasks)
        return total - own * tasks, own

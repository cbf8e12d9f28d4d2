"""ACTMat: merging by the Gram matrices of the task vectors themselves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from lwptv_lightning.functional import own_row_terms
from lwptv_lightning.registry import choice, matches, number, patterns, shown
from lwptv_lightning.rules._base import MergeContext, MergeRule, is_matrix, merge_rule

_FUSED = 3
"""Query, key and value."""


@merge_rule("actmat", paper="https://arxiv.org/abs/2604.01329")
@dataclass(frozen=True, kw_only=True)
class ACTMat(MergeRule):
    """Merge linear layers so that their outputs stay closest to each task's, on inputs told from the task vectors.

    RegMean without data: ``(sum_t tau_t C_t) (sum_t C_t)^+``, where the task vector's own Gram matrix
    ``C_t = tau_t^T tau_t``, ``(in, in)``, stands for that of the layer's inputs. A zero task vector takes no part; one
    that is alone on a tensor stays as it is, if ``trim`` takes nothing of it. Matrices are 2-D tensors, whose last
    dimension must be that of the inputs, and the weights ``(out, in, 1, 1)`` of 1x1 convolutions. Other tensors are
    averaged.

    It blows up at the interpolation threshold: where ``T * out`` is about ``in``, as in the second matrix of an MLP,
    the sum of the Gram matrices is all but singular, and the result is some ten times as long as the mean. How much
    longer is a matter of ``rtol`` more than of anything else.

    Args:
        rtol: In [0, 1): eigenvalues of the summed Gram matrix that are at most so large beside the largest count as
            zero, and the directions are dropped. By default ``in`` times the rounding of float32, which drops singular
            values of the stacked task vectors below 1 % where ``in`` is 768. Smaller is longer.
        weights: ``"equal"``, or ``"norm"`` with ``C_t / |tau_t|_F^2``, so that all tasks count alike whatever their
            length; that is WUDI in closed form.
        trim: The fraction of a task vector's elements of which ``C_t`` is made, in (0, 1]: TACT. The
            ``round(trim * elements)`` largest magnitudes of a tensor stay, at least one, and what ties with the last.
            ``None`` keeps all, as 1 does. What a task alone has outside the rows that are left is lost.
        split: Globs of weights ``(3 * out, in)`` that hold queries, keys and values, which are merged apart.
        exclude: Globs of tensor names that are averaged although they are matrices.

    Raises:
        ValueError: A matrix of ``split`` cannot be divided into three.

    Example:
        >>> tau = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]]])
        >>> ACTMat().combine(tau, MergeContext("w", ("a", "b")))
        tensor([[1.8000, 0.0000]])

    Reference:
        ACTMat, arXiv 2604.01329. The authors' code averages names that hold ``text_projection``:
        ``exclude=("*text_projection*",)``, and with ``--mha=split`` merges ``split=("*in_proj_weight",)`` apart.
        Deviations: float64, with the cut-off of the authors' float32 made explicit; the pseudo-inverse of the smaller
        side; matrices with a side of 20000 or more are merged as others are; of one task alone nothing is cut off
        without ``trim``; of equal magnitudes at the end of a trim all stay.
    """

    tensors = "2-D tensors and 1x1 convolutions as matrices; others averaged"

    rtol: float | None = number(None, "[0, 1)")
    weights: str = choice("equal", ("equal", "norm"))
    trim: float | None = number(None, "(0, 1]")
    split: tuple[str, ...] = patterns(())
    exclude: tuple[str, ...] = patterns(())

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor is a matrix that is not excluded."""
        treats = is_matrix(shape, name, exclude=self.exclude)
        if treats and shape[0] % _FUSED and matches(name, self.split):
            raise ValueError(
                f"split takes {shown(name)} for queries, keys and values one below the other, but its {shape[0]} rows "
                f"cannot be divided by {_FUSED}. Expected globs of fused weights alone, not {self.split}."
            )
        return treats

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return ``tau_t C_t (sum_s C_s)^+`` of each task t, ``(T, *shape)``; they may be long and cancel."""
        if (matrices := self.as_matrices(tau, context)) is None:
            return tau / len(tau)
        dtype = tau.dtype
        blocks = [torch.stack([term.to(dtype) for term in terms]) for terms in self._terms(matrices, context)]
        return torch.cat(blocks, dim=1).reshape(tau.shape)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Merge one stack, ``(T, *shape) -> (*shape)``."""
        if (matrices := self.as_matrices(tau, context)) is None:
            return tau.mean(0)
        blocks = [reduce(torch.add, terms).to(tau.dtype) for terms in self._terms(matrices, context)]
        return torch.cat(blocks).reshape(tau.shape[1:])

    def _terms(self, matrices: Tensor, context: MergeContext) -> Iterator[Iterator[Tensor]]:
        """Yield the terms of each block of rows that is merged apart."""
        blocks = matrices.chunk(_FUSED, dim=1) if matches(context.name, self.split) else [matrices]
        for block in blocks:
            yield own_row_terms(block, self.rtol, unit=self.weights == "norm", kept=self.trim)

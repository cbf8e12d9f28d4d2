"""DELLA: drop elements with a probability that falls with their magnitude."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.functional import (
    agreeing_parts,
    combine_agreeing,
    drop_at_random_,
    elect_signs,
    magnitude_probabilities,
)
from lwptv_lightning.registry import number, whole
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("della", paper="https://arxiv.org/abs/2406.11617")
@dataclass(frozen=True, kw_only=True)
class DELLA(MergeRule):
    """Keep elements at random, large ones more often, rescale, elect one sign per weight, average what agrees.

    In each row of m elements, ``(shape[0], rest)``, the element of rank r = 1 ... m by ``|tau|`` is kept with
    ``p = density - epsilon + (r - 1) / (m - 1) 2 epsilon`` and divided by its own p. Elect: the sign of the sum over
    tasks, + where it is 0. Merge: the mean of the entries with that sign.

    Args:
        density: The mean probability that an element is kept.
        epsilon: Half the window of probabilities, at least 0; ``density`` plus or minus it must lie in (0, 1).
        seed: Seeds the draw, together with the names of task and tensor and the position, as for ``dare``.

    Example:
        >>> import torch
        >>> DELLA(density=0.5, epsilon=0).combine(torch.ones(1, 64), MergeContext("w", ("a",))).unique()
        tensor([0., 2.])

    Reference:
        Deep et al., DELLA-Merging, arXiv 2406.11617, with the authors' ``1 / p``. Deviations: the random stream is our
        own. The authors' code ranks along dimension 1 and fails on scalars and where that dimension is 1; here rows
        of convolutions are flattened, a vector or a scalar is one row, and a row of one element has p = density.
    """

    density: float = number(0.5, "(0, 1)")
    epsilon: float = number(0.15, "[0, 0.5)")
    seed: int = whole(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.density - self.epsilon > 0 and self.density + self.epsilon < 1):
            ends = "density - epsilon and density + epsilon"
            raise ValueError(f"epsilon must leave {ends} in (0, 1), but is {self.epsilon} with density {self.density}.")

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return what agrees of each task over how many agree, ``(T, *shape)``."""
        kept = self._dropped(tau, context)
        return agreeing_parts(kept, elect_signs(kept, 1.0), "mean")

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Drop, rescale, elect and merge one stack, ``(T, *shape) -> (*shape)``."""
        kept = self._dropped(tau, context)
        return combine_agreeing(kept, elect_signs(kept, 1.0), "mean")

    def _dropped(self, tau: Tensor, context: MergeContext) -> Tensor:
        probability = magnitude_probabilities(tau, self.density, self.epsilon)
        return drop_at_random_(tau, probability, self.seed, context.tasks, context.name)

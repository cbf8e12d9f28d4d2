"""Multi-SLERP."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.functional import NEGLIGIBLE, directions
from lwptv_lightning.registry import per_task
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule
from lwptv_lightning.rules.weighted_average import WeightedAverage


@merge_rule("multislerp", paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea")
@dataclass(frozen=True, kw_only=True)
class MultiSLERP(MergeRule):
    """Average the directions of the task vectors, and their lengths: ``R m / |m|``, ``m = sum_t w_t tau_t / |tau_t|``.

    ``R = sum_t w_t |tau_t|``, and the weights are divided by their sum. A zero task vector has no direction and the
    length 0. Where the directions cancel (``m = 0``) the result is the weighted average ``sum_t w_t tau_t``.

    Args:
        weights: ``w_t``, one for each task in the order of the tasks; equal by default. Their sum must not be 0.

    Raises:
        ValueError: The weights sum to 0, or there is not one for each task.

    Example:
        >>> import torch
        >>> MultiSLERP().combine(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), MergeContext("w", ("a", "b")))
        tensor([1.4142, 1.4142])

    Reference:
        Goddard, Multi-SLERP, as in mergekit with a base model, whose tensors are the origin. mergekit goes on from
        the mean direction by one step in the tangent space there; that step is the mean of tangents at their own mean
        and so always zero, which is why none is taken here. Deviations: no absolute floor below the norms, and
        cancelling directions fall back to the weighted average for any number of tasks, where mergekit raises for
        more than two.
    """

    weights: tuple[float, ...] | None = per_task()

    def __post_init__(self) -> None:
        super().__post_init__()
        WeightedAverage(weights=self.weights)  # Raises where they sum to 0.

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return ``R w_t tau_t / (|tau_t| |m|)``, ``(T, *shape)``."""
        average = WeightedAverage(weights=self.weights)
        units, norms = directions(tau)
        steps = average.parts(units, context)
        length = steps.sum(0).norm()
        if length <= NEGLIGIBLE:
            return average.parts(tau, context)
        radius: Tensor = average.combine(norms, context) / length
        return steps * radius

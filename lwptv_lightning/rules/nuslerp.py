"""NuSLERP."""

import math
from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.functional import NEGLIGIBLE, directions, per_row
from lwptv_lightning.registry import number, printable_name
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("nuslerp", paper="https://doi.org/10.1145/325334.325242")
@dataclass(frozen=True, kw_only=True)
class NuSLERP(MergeRule):
    """Interpolate between two task vectors along an arc: ``(sin((1-t) a) tau_0 + sin(t a) tau_1) / sin(a)``.

    a is the angle between the two, tensor by tensor. Where they are parallel or opposite there is no such arc and
    the result is ``(1-t) tau_0 + t tau_1``. A zero task vector stands at a right angle to every other.

    Args:
        t: Where on the arc, in [0, 1]: 0 is the first task, 1 the second.

    Raises:
        ValueError: There are not exactly two tasks.

    Example:
        >>> import torch
        >>> NuSLERP(t=0.5).combine(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), MergeContext("w", ("a", "b")))
        tensor([0.7071, 0.7071])

    Reference:
        Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985, on task vectors as mergekit's ``nuslerp``
        does with a base model and flattened tensors. Deviations: the angle comes from sum and difference of the
        directions, exact near 0 and pi where an arc cosine is not, and opposite vectors are told by a margin that
        holds in float32.
    """

    t: float = number(0.5, "[0, 1]")

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return both task vectors times their coefficients, ``(2, *shape)``."""
        if len(tau) != 2:
            raise ValueError(
                f"nuslerp merges exactly 2 tasks, not {len(tau)}: {', '.join(map(printable_name, context.tasks))}."
            )
        first, second = directions(tau)[0]
        angle = 2 * math.atan2(float((first - second).norm()), float((first + second).norm()))
        coefficients = [1 - self.t, self.t]
        if math.sin(angle) > NEGLIGIBLE:
            coefficients = [math.sin(part * angle) / math.sin(angle) for part in coefficients]
        return tau * per_row(tau.new_tensor(coefficients), tau)

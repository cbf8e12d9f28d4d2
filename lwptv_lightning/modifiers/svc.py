"""SVC: singular value calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.functional import NEGLIGIBLE, Triplets
from lwptv_lightning.layers import is_matrix
from lwptv_lightning.modifiers._base import Calibration, modifier
from lwptv_lightning.registry import number, patterns


@modifier("svc", paper="https://arxiv.org/abs/2602.05536")
@dataclass(frozen=True, kw_only=True)
class SVC(Calibration):
    """Divide each singular value of a merged matrix by how many times over the tasks have its direction.

    For the left singular vector ``u_r`` of the merged and scaled matrix M and task t, with ``a_r = u_r^T M`` and
    ``b_rt = u_r^T tau_t``, ``c_rt = <a_r, b_rt> / |b_rt|^2`` is what M holds of the task there, 1 for just as much.
    The singular value becomes ``s_r / mean_t max(c_rt, alpha)``. Matrices are 2-D tensors and the weights
    ``(out, in, 1, 1)`` of 1x1 convolutions; other tensors stay as rule and scale made them.

    It takes back a scale that comes before it: the smaller alpha, the less that one counts. What is worth choosing is
    alpha, and the scale afterwards. Where singular values lie close together, as after TSV-M of many tasks, it enlarges
    the rounding of what the rule made, in float32 to some 1e-4 of a weight; ``dtype="float64"`` has none of that.

    Args:
        alpha: What counts at least for a task, above 0, such as 1, which only shrinks; ``None`` is 1/T.
        scale: What the calibrated matrix is multiplied with afterwards.
        exclude: Globs of tensor names that are not calibrated although they are matrices.

    Example:
        >>> from lwptv_lightning import MergeRecipe, TaskVectors, merge
        >>> task = {"w": torch.tensor([[4.0, 0.0], [0.0, 1.0]])}
        >>> vectors = TaskVectors.open({"w": torch.zeros(2, 2)}, {"a": task, "b": task})
        >>> merge(vectors, MergeRecipe("task_arithmetic", scale=1.0, calibrate=SVC()))["w"]
        tensor([[4., 0.],
                [0., 1.]])

    Reference:
        Singular value calibration, arXiv 2602.05536. The authors use alpha 1, 1/8 and 0.1 in different places. Where
        all singular values are equal, as after Iso-C, singular vectors are rounding noise, and a recipe is refused.
        Deviations: tasks whose matrix is zero are left out of the mean, where the authors' code counts alpha for each,
        which makes the rest larger; so are those below 1e-6 of the largest, and so small a share that a task has of a
        direction beside its largest counts as zero, where the authors' code has at least 1e-12 for ``|b|^2`` whatever
        the size of the weights; 1x1 convolutions are matrices.
    """

    tells_directions_apart = True

    alpha: float | None = number(None, "(0, inf)")
    scale: float = number(1.0, "(-inf, inf)")
    exclude: tuple[str, ...] = patterns(("*text_projection*", "*embedding*"))

    def treats(self, name: str, shape: Sequence[int]) -> bool:
        """Tell whether a tensor is a matrix that is not excluded."""
        return is_matrix(shape, name, exclude=self.exclude)

    def gains(self, merged: Triplets, tau: Tensor) -> Tensor:
        """Return ``1 / mean_t max(c_rt, alpha)`` of each direction, ``(r,)``; 1 where all tasks are zero."""
        alpha = 1 / len(tau) if self.alpha is None else self.alpha
        sizes = tau.abs().flatten(1).amax(1).double() if tau.numel() else tau.new_zeros(len(tau)).double()
        real = (sizes > NEGLIGIBLE * sizes.max()).nonzero().flatten()
        held = [_held(merged, tau[task], sizes[task]).clamp_(min=alpha) for task in real.tolist()]
        return 1 / torch.stack(held).mean(0) if held else torch.ones_like(merged.values)


def _held(merged: Triplets, task: Tensor, largest: Tensor) -> Tensor:
    """Return how many times over a merged matrix holds each of its directions of one task, ``(r,)``."""
    # Both divided by the task's largest value, whose square neither vanishes nor overflows then.
    own = merged.left.mT @ (task.double() / largest)
    products = (merged.right * own).sum(1) * (merged.values / largest)
    squares = own.square().sum(1)
    real = squares > NEGLIGIBLE**2 * squares.max()
    return torch.where(real, products / squares, 0)

"""Magnitude pruning."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.engine import Stream
from lwptv_lightning.functional import keep_largest_, trim_
from lwptv_lightning.registry import choice, number
from lwptv_lightning.rules._base import MergeContext, MergeRule, Unit, merge_rule
from lwptv_lightning.rules._trim import trim_thresholds


@merge_rule("magnitude", paper="https://arxiv.org/abs/2405.07813", scale=0.3)
@dataclass(frozen=True, kw_only=True)
class Magnitude(MergeRule[Tensor]):
    """Keep the largest elements of each task vector, then add: ``sum_t m_t tau_t``.

    Args:
        density: The fraction to keep, in (0, 1]; 1 keeps everything.
        scope: ``"model"`` ranks all weights of a task together and keeps the ``int(d * density) + 1`` largest
            ``|tau|`` and whatever ties with the least of them, as TIES does. ``"tensor"`` keeps exactly
            ``int(n * density)`` of each tensor, of equal ones the first.

    Example:
        >>> import torch
        >>> tau = torch.tensor([[4.0, -1.0, 0.1, 2.0], [2.0, 3.0, 0.1, 1.0]])
        >>> Magnitude(density=0.5, scope="tensor").combine(tau, MergeContext("w", ("a", "b")))
        tensor([6., 3., 0., 2.])

    Reference:
        The magnitude baseline of Wang et al., Localizing task information, arXiv 2405.07813, whose code is the model
        scope; mergekit's magnitude sparsification is the tensor scope. Deviation: density is a fraction, never
        percent, and what is kept is not rescaled.
    """

    density: float = number(0.2, "(0, 1]")
    scope: str = choice("model", ("model", "tensor"))

    @property
    def unit(self) -> Unit:
        """All of a task's tensor where it is ranked by itself, else single elements."""
        return "task" if self.scope == "tensor" else "element"

    def survey(self, stream: Stream) -> Tensor | None:
        """Find each task's threshold over the whole model, ``(T,)``."""
        return None if self.scope == "tensor" else trim_thresholds(stream, self.density)

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return what is kept of each task vector, ``(T, *shape)``."""
        return keep_largest_(tau, self.density) if self.scope == "tensor" else trim_(tau, context.survey)

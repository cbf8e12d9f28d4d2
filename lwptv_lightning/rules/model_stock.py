"""Model Stock."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.functional import NEGLIGIBLE, directions
from lwptv_lightning.registry import flag
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("model_stock", paper="https://arxiv.org/abs/2403.19522")
@dataclass(frozen=True, kw_only=True)
class ModelStock(MergeRule):
    """Average the models and go back towards the base, the more so the less the task vectors agree.

    ``r / T sum_t tau_t`` with ``r = T c / (1 + (T - 1) c)``, where c is the cosine between two task vectors of this
    tensor, averaged over all pairs. A zero task vector has the cosine 0 with every other. One task gives ``r = 1``.

    Args:
        clamp: Keep r in [0, 1]. Without it, task vectors that point apart (``c < 0``) are merged with a negative r,
            which has no bound as they come to cancel; where they do cancel, r is 0.

    Example:
        >>> import torch
        >>> ModelStock().combine(torch.tensor([[4.0, 0.0], [4.0, 3.0]]), MergeContext("w", ("a", "b")))
        tensor([3.5556, 1.3333])

    Reference:
        Jang et al., Model Stock, arXiv 2403.19522. The authors give one angle and released no code: with more than
        two tasks the cosines are averaged, as in mergekit. Deviation from mergekit: no absolute floor below the
        norms, so that small task vectors are merged like large ones.
    """

    clamp: bool = flag(False)

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return ``r tau_t / T``, ``(T, *shape)``."""
        return tau * (self._ratio(tau) / len(tau))

    def _ratio(self, tau: Tensor) -> float:
        tasks = len(tau)
        if tasks == 1:
            return 1.0
        units = directions(tau.double())[0].reshape(tasks, -1)
        cosines = units @ units.T
        cosine = float(cosines.sum() - cosines.trace()) / (tasks * (tasks - 1))
        agreement = 1 + (tasks - 1) * cosine
        ratio = tasks * cosine / agreement if agreement > NEGLIGIBLE else 0.0
        return min(max(ratio, 0.0), 1.0) if self.clamp else ratio

"""TIES-merging."""

from dataclasses import dataclass, replace

from torch import Tensor

from lwptv_lightning.pruned_task_vectors import PrunedTaskVectors
from lwptv_lightning.rules._base import DataStatistics, MergeContext, MergeRule, merge_rule
from lwptv_lightning.rules._ops import combine_agreeing, elect_signs, keep_largest_, trim_, trim_thresholds
from lwptv_lightning.rules._parameters import choice, number


@dataclass(frozen=True)
class TrimSurvey:
    """What TIES knows of the whole model.

    Attributes:
        thresholds: The magnitude an element needs to stay, for each task, ``(T,)``.
        tie: The sign elected where the trimmed task vectors cancel: that of most elected signs, and -1 where these
            cancel too.
    """

    thresholds: Tensor
    tie: float = 1.0


@merge_rule("ties", paper="https://arxiv.org/abs/2306.01708")
@dataclass(frozen=True, kw_only=True)
class TIES(MergeRule):
    """Trim each task vector, elect one sign per weight, combine the entries that agree with it.

    Trim: keep of each task the ``int(d * density) + 1`` largest ``|tau|`` of the whole model, and whatever ties with
    the least of them. Elect: ``sign(sum_t tau_t)`` of what is left. Merge: the mean, sum or maximum of the entries
    with that sign.

    Args:
        density: The fraction to keep, in (0, 1]; 1 trims nothing.
        reduce: ``"mean"`` over the entries that agree, their ``"sum"``, or the ``"max"``.
        scope: ``"model"`` ranks all weights of a task together. ``"tensor"`` keeps exactly ``int(n * density)`` of
            each tensor and elects + where a vote is tied, as mergekit does.

    Example:
        >>> import torch
        >>> from lwptv_lightning import MergeRecipe, TaskVectors, merge
        >>> tasks = {"a": {"w": torch.tensor([4.0, -1.0, 0.1])}, "b": {"w": torch.tensor([2.0, 3.0, 0.1])}}
        >>> vectors = TaskVectors.open({"w": torch.zeros(3)}, tasks)
        >>> merge(vectors, MergeRecipe(rule=TIES(density=0.5)))["w"]
        tensor([3., 3., 0.])

    Reference:
        Yadav et al., TIES-merging, arXiv 2306.01708, in the authors' conventions: the ``+ 1`` of the trim, and a tied
        vote that takes the majority sign of the model. Deviations: density is a fraction, never percent, and 1 means
        no trim, where the authors' code fails.
    """

    density: float = number(0.2, "(0, 1]")
    reduce: str = choice("mean", ("mean", "sum", "max"))
    scope: str = choice("model", ("model", "tensor"))

    def survey(self, vectors: PrunedTaskVectors, statistics: DataStatistics | None = None) -> TrimSurvey | None:
        """Find each task's threshold over the whole model, then the majority of the elected signs."""
        if self.scope == "tensor":
            return None
        survey = TrimSurvey(trim_thresholds(vectors, self.density))
        votes = sum(trim_(vectors.stack(name), survey.thresholds).sum(0).sign().sum().item() for name in vectors.names)
        return replace(survey, tie=1.0 if votes > 0 else -1.0)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Trim, elect and merge one stack, ``(T, *shape) -> (*shape)``."""
        if self.scope == "tensor":
            trimmed, tie = keep_largest_(tau, int(tau[0].numel() * self.density)), 1.0
        else:
            trimmed, tie = trim_(tau, context.survey.thresholds), context.survey.tie
        return combine_agreeing(trimmed, elect_signs(trimmed, tie), self.reduce)

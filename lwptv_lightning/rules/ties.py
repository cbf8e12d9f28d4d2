"""TIES-merging."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.engine import Stream
from lwptv_lightning.functional import agreeing_parts, combine_agreeing, elect_signs, keep_largest_
from lwptv_lightning.registry import choice, number
from lwptv_lightning.rules._base import MergeContext, MergeRule, Unit, merge_rule
from lwptv_lightning.rules._trim import TrimSurvey, survey_trim, trim_elect_merge_, trim_elect_parts_


@merge_rule("ties", paper="https://arxiv.org/abs/2306.01708")
@dataclass(frozen=True, kw_only=True)
class TIES(MergeRule[TrimSurvey]):
    """Trim each task vector, elect one sign per weight, combine the entries that agree with it.

    Trim: keep of each task the ``int(d * density) + 1`` largest ``|tau|`` of the whole model, and whatever ties with
    the least of them. Elect: ``sign(sum_t tau_t)`` of what is left. Merge: mean, sum or maximum of what has that sign.

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

    @property
    def unit(self) -> Unit:
        """All of a task's tensor where it is ranked by itself, else single elements."""
        return "tensor" if self.scope == "tensor" else "element"

    def survey(self, stream: Stream) -> TrimSurvey | None:
        """Find each task's threshold over the whole model, then the majority of the elected signs."""
        return None if self.scope == "tensor" else survey_trim(stream, self.density)

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return what agrees of each task, over how many agree for the mean, ``(T, *shape)``."""
        if self.scope == "model":
            return trim_elect_parts_(tau, context.survey, self.reduce)
        trimmed = keep_largest_(tau, self.density)
        return agreeing_parts(trimmed, elect_signs(trimmed, 1.0), self.reduce)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Trim, elect and merge one stack, ``(T, *shape) -> (*shape)``."""
        if self.scope == "model":
            return trim_elect_merge_(tau, context.survey, self.reduce)
        trimmed = keep_largest_(tau, self.density)
        return combine_agreeing(trimmed, elect_signs(trimmed, 1.0), self.reduce)

"""Consensus TIES."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.engine import Stream
from lwptv_lightning.functional import consensus_mask, keep_consensus
from lwptv_lightning.registry import choice, number, whole
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule
from lwptv_lightning.rules._trim import TrimSurvey, survey_trim, trim_elect_merge_, trim_elect_parts_


@merge_rule("consensus_ties", paper="https://arxiv.org/abs/2405.07813", scale=0.3)
@dataclass(frozen=True, kw_only=True)
class ConsensusTIES(MergeRule[TrimSurvey]):
    """Merge with TIES, and keep the weights that matter to several tasks.

    With M the merged task vector of TIES, a weight matters to task t where ``|tau_t| > tall_lambda |M - tau_t|`` (its
    TALL mask; ``tau_t`` is not trimmed there). The result is M where it matters to ``min_tasks`` tasks or more, else 0.

    Args:
        tall_lambda: How much larger than the rest a task's own part must be, at least 0.
        min_tasks: How many tasks a weight must matter to, at least 0; 0 keeps everything, more than T nothing.
        density: The fraction that the trim of TIES keeps, in (0, 1].
        reduce: ``"mean"`` over the entries that agree, their ``"sum"``, or the ``"max"``.

    Example:
        >>> import torch
        >>> from lwptv_lightning import MergeRecipe, TaskVectors, merge
        >>> tasks = {"a": {"w": torch.tensor([4.0, -1.0, 0.1])}, "b": {"w": torch.tensor([2.0, 3.0, 0.1])}}
        >>> vectors = TaskVectors.open({"w": torch.zeros(3)}, tasks)
        >>> merge(vectors, MergeRecipe(rule=ConsensusTIES(density=0.5), scale=1.0))["w"]
        tensor([6., 0., 0.])

    Reference:
        Wang et al., Localizing task information, arXiv 2405.07813. Deviation: the authors choose lambda for each task
        on validation data; here one lambda serves all.
    """

    unit = "element"

    tall_lambda: float = number(0.4, "[0, inf)")
    min_tasks: int = whole(2)
    density: float = number(0.2, "(0, 1]")
    reduce: str = choice("sum", ("mean", "sum", "max"))

    def survey(self, stream: Stream) -> TrimSurvey:
        """Find what TIES needs to know of the whole model."""
        return survey_trim(stream, self.density)

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task's part of what TIES merges, where weights matter to several tasks, ``(T, *shape)``."""
        made = trim_elect_parts_(tau.clone(), context.survey, self.reduce)
        merged = trim_elect_merge_(tau.clone(), context.survey, self.reduce)
        return made * consensus_mask(tau, merged, self.tall_lambda, self.min_tasks)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Merge and mask one stack, ``(T, *shape) -> (*shape)``."""
        merged = trim_elect_merge_(tau.clone(), context.survey, self.reduce)
        return keep_consensus(tau, merged, self.tall_lambda, self.min_tasks)

"""DARE followed by TIES."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.engine import Block, Stream
from lwptv_lightning.functional import drop_at_random_
from lwptv_lightning.registry import choice, number, whole
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule
from lwptv_lightning.rules._trim import TrimSurvey, survey_trim, trim_elect_merge_, trim_elect_parts_


@merge_rule("dare_ties", paper="https://arxiv.org/abs/2311.03099", scale=0.5)
@dataclass(frozen=True, kw_only=True)
class DARETIES(MergeRule[TrimSurvey]):
    """Drop elements at random and rescale the rest as DARE does, then trim, elect and merge as TIES does.

    TIES is applied to ``m_t tau_t / density``, ``m_t ~ Bernoulli(density)``, over the whole model.

    Args:
        density: The probability that an element survives the drop, in (0, 1].
        seed: Seeds the draw, which is the same as that of ``dare`` with this seed and density.
        trim_density: The fraction of all elements, dropped ones included, that the trim keeps, in (0, 1].
        reduce: ``"mean"`` over the entries that agree, their ``"sum"``, or the ``"max"``.

    Example:
        >>> import torch
        >>> from lwptv_lightning import MergeRecipe, TaskVectors, merge
        >>> vectors = TaskVectors.open({"w": torch.zeros(64)}, {"a": {"w": torch.ones(64)}})
        >>> merge(vectors, MergeRecipe(rule=DARETIES(trim_density=0.5), scale=1.0))["w"].unique()
        tensor([0., 2.])

    Reference:
        Yu et al., Language models are super Mario, arXiv 2311.03099, with the second trim and the sum of
        FusionBench. Deviation: the random stream is our own, as for ``dare``; densities are fractions to keep.
    """

    unit = "element"

    density: float = number(0.5, "(0, 1]")
    seed: int = whole(0)
    trim_density: float = number(0.2, "(0, 1]")
    reduce: str = choice("sum", ("mean", "sum", "max"))

    def survey(self, stream: Stream) -> TrimSurvey:
        """Find thresholds and the majority sign of the dropped and rescaled task vectors."""

        def drop(block: Block) -> Tensor:
            return drop_at_random_(block.tau, self.density, self.seed, stream.tasks, block.name, block.start)

        return survey_trim(stream, self.trim_density, drop)

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return what agrees of each task, over how many agree for the mean, ``(T, *shape)``."""
        return trim_elect_parts_(self._dropped(tau, context), context.survey, self.reduce)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Drop, rescale, trim, elect and merge one stack, ``(T, *shape) -> (*shape)``."""
        return trim_elect_merge_(self._dropped(tau, context), context.survey, self.reduce)

    def _dropped(self, tau: Tensor, context: MergeContext) -> Tensor:
        return drop_at_random_(tau, self.density, self.seed, context.tasks, context.name, context.start)

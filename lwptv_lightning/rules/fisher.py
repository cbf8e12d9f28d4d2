"""Fisher merging."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.engine import Stream
from lwptv_lightning.functional import per_row, sum_tasks
from lwptv_lightning.registry import flag, natural_order, number
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("fisher", paper="https://arxiv.org/abs/2111.09832")
@dataclass(frozen=True, kw_only=True)
class Fisher(MergeRule[Tensor]):
    """Average weighted by Fisher information: ``sum_t c_t (F_t + floor) tau_t / sum_t c_t (F_t + floor)``.

    ``F_t`` is the diagonal Fisher information of task t's own model on its own data, one number per weight, as
    `lwptv_lightning.callbacks.CollectDataStatistics` collects it. Tensors without one are averaged.

    Args:
        normalize: ``c_t = 1 / |F_t|_2`` over the whole model, so that no task outweighs the others by its scale;
            else ``c_t = 1``. A task whose Fisher information is zero gets ``c_t = 1``.
        floor: Added to every Fisher information, above 0.

    Example:
        >>> from lwptv_lightning import MergeRecipe, TaskVectors, merge
        >>> vectors = TaskVectors.open({"w": torch.zeros(1)}, {"a": {"w": torch.ones(1)}, "b": {"w": -torch.ones(1)}})
        >>> fisher = {"a": {"w": torch.tensor([3.0])}, "b": {"w": torch.tensor([1.0])}}
        >>> merge(vectors, MergeRecipe(rule=Fisher(normalize=False)), statistics=fisher)["w"]
        tensor([0.5000])

    Reference:
        Matena and Raffel, Merging models with Fisher-weighted averaging, arXiv 2111.09832. Deviation: the floor is
        added for every task, as in later libraries; the authors' code takes a maximum, for the first model alone.
    """

    unit = "element"
    needs = "fisher"
    tensors = "those with Fisher information alike; others averaged"
    treats = "by their Fisher information"

    normalize: bool = flag(True)
    floor: float = number(1e-6, "(0, inf)")

    def treated(self, stream: Stream) -> tuple[str, ...]:
        """Return the names of the tensors that have Fisher information."""
        return tuple(name for name in stream.names if stream.is_collected(name))

    def survey(self, stream: Stream) -> Tensor:
        """Return ``c_t``, ``(T,)``."""
        if not self.normalize or stream.data is None:
            return torch.ones(len(stream.tasks), dtype=torch.float64)
        names = natural_order(stream.names)
        squares = (
            sum(float(own[name].double().square().sum()) for name in names if name in own)
            for own in (stream.data[task] for task in stream.tasks)
        )
        return torch.tensor([square**-0.5 if square > 0 else 1.0 for square in squares], dtype=torch.float64)

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task's weighted part, ``(T, *shape)``."""
        if context.statistics is None:
            return tau / len(tau)
        weights = (context.statistics.to(tau) + self.floor) * per_row(context.survey, tau)
        return tau * (weights / sum_tasks(weights))

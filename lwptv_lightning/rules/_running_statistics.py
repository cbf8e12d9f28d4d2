"""Running statistics of batch normalisation: no weights, and merged by a rule of their own whatever the recipe's."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.functional import sum_tasks
from lwptv_lightning.rules._base import MergeContext, MergeRule

_PAIR = ("running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class RunningStatistics(MergeRule):
    """Average running statistics over the tasks: ``1/T sum_t tau_t``, a pruned task counting with the base's.

    The rule is in no registry: a merge applies it to `running_statistics`, with the scale 1.
    """

    name = "running_statistics"
    paper = "https://arxiv.org/abs/1502.03167"
    published_scale = 1.0
    unit = "element"

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Average one stack, ``(T, *shape) -> (*shape)``."""
        return sum_tasks(tau).div_(len(tau))


def running_statistics(names: Iterable[str]) -> set[str]:
    """Return the running means and variances of batch normalisation among the names of tensors.

    These end in ``running_mean`` or ``running_var`` and have the other beside them.
    `lwptv_lightning.callbacks.RecalibrateBatchNorm` measures them anew on data.

    Example:
        >>> sorted(running_statistics(["bn.weight", "bn.running_mean", "bn.running_var", "running_mean"]))
        ['bn.running_mean', 'bn.running_var']
    """
    known = set(names)
    modules = {name.removesuffix(_PAIR[0]) for name in known if name.rpartition(".")[2] == _PAIR[0]}
    return {module + own for module in modules for own in _PAIR if {module + each for each in _PAIR} <= known}

"""AdaMerging: task arithmetic with learnt coefficients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lwptv_lightning.engine import Stream
from lwptv_lightning.functional import agreeing_parts, elect_signs, per_row, trim_
from lwptv_lightning.registry import first_match, flag, number, per_task_by_tensor, require_per_task
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule
from lwptv_lightning.rules._trim import TrimSurvey, survey_trim


@merge_rule("adamerging", paper="https://arxiv.org/abs/2310.02575")
@dataclass(frozen=True, kw_only=True)
class AdaMerging(MergeRule[TrimSurvey]):
    """Add the task vectors with a coefficient for each task and tensor: ``sum_t lambda_{t,tensor} tau_t``.

    `lwptv_lightning.AdaMergingModule` learns them on unlabelled data, by minimising the entropy of the predictions.

    Args:
        coefficients: Glob of tensor names to one coefficient for each task; the first that matches counts, and tensors
            that none matches stay at the base. By default 0.3 for all, where learning starts.
        plus_plus: First trim and drop the entries against the elected sign, as TIES does (AdaMerging++).
        density: What the trim of AdaMerging++ keeps, in (0, 1].

    Example:
        >>> rule = AdaMerging(coefficients={"blocks.*": [1.0, 0.0], "*": [0.5, 0.5]})
        >>> rule.combine(torch.tensor([[2.0], [4.0]]), MergeContext("head.weight", ("a", "b")))
        tensor([3.])

    Reference:
        Yang et al., AdaMerging, arXiv 2310.02575; its "layer-wise" coefficients are one for each tensor.
    """

    unit = "element"
    tensors = "those that a glob of coefficients matches alike; others stay the base's"
    treats = "by their coefficients"

    coefficients: Mapping[str, tuple[float, ...]] | None = per_task_by_tensor()
    plus_plus: bool = flag(False)
    density: float = number(0.2, "(0, 1]")

    def treated(self, stream: Stream) -> tuple[str, ...] | None:
        """Return the names of the tensors that have coefficients; ``None`` where all have the same."""
        if self.coefficients is None:
            return None
        return tuple(name for name in stream.names if self._glob_of(name) is not None)

    def survey(self, stream: Stream) -> TrimSurvey | None:
        """Find the thresholds and the majority sign, for AdaMerging++."""
        return survey_trim(stream, self.density) if self.plus_plus else None

    def split(self, tau: Tensor, survey: TrimSurvey | None) -> Tensor:
        """Return what the coefficients act on: the task vectors, or what the TIES split leaves of them."""
        if survey is None:
            return tau
        trimmed = trim_(tau, survey.thresholds)
        return agreeing_parts(trimmed, elect_signs(trimmed, survey.tie), "sum")

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return ``lambda_t tau_t``, ``(T, *shape)``."""
        tau = self.split(tau, context.survey)
        if self.coefficients is None:
            return 0.3 * tau
        pattern = self._glob_of(context.name)
        if pattern is None:
            return torch.zeros_like(tau)
        coefficients = self.coefficients[pattern]
        require_per_task(f"coefficients[{pattern!r}]", coefficients, context.tasks)
        return tau * per_row(torch.tensor(coefficients, dtype=torch.float64), tau)

    @cached_property
    def _glob_of(self) -> Callable[[str], str | None]:
        """What tells the first glob of the coefficients that matches a name; there may be one for each tensor."""
        return first_match(self.coefficients or ())

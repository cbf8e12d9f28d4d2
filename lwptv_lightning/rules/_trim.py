"""Trims over the whole model, which several rules share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.engine import Block, Stream, Transform, kth_smallest_magnitude
from lwptv_lightning.functional import agreeing_parts, combine_agreeing, elect_signs, sum_tasks, trim_


@dataclass(frozen=True)
class TrimSurvey:
    """What TIES knows of the whole model.

    Attributes:
        thresholds: The magnitude an element needs to stay, for each task, ``(T,)``.
        tie: The sign elected where trimmed task vectors cancel: that of most elected signs, 0 where these cancel too.
    """

    thresholds: Tensor
    tie: float


def smallest_kept(elements: int, density: float) -> int:
    """Return the rank, from the smallest, of the least element that a trim keeps.

    A trim to a fraction ``density`` of d elements keeps all that are at least as large as the
    ``d - int(d * density)``-th smallest, so ``int(d * density) + 1`` of them and whatever ties with the last, as the
    authors' code of TIES does. A density of 1 keeps everything.

    Example:
        >>> smallest_kept(10, 0.2), smallest_kept(10, 1.0)
        (8, 1)
    """
    return max(elements - int(elements * density), 1)


def trim_thresholds(stream: Stream, density: float, transform: Transform | None = None) -> Tensor:
    """Return the magnitude that an element needs to stay, for each task over the whole model, ``(T,)``."""
    if density == 1:
        return torch.zeros(len(stream.tasks), dtype=stream.dtype)
    return kth_smallest_magnitude(stream, smallest_kept(stream.elements, density), transform)


def survey_trim(stream: Stream, density: float, transform: Transform | None = None) -> TrimSurvey:
    """Find the majority sign of the whole model after a trim of the task vectors, or of what ``transform`` gives."""
    thresholds = trim_thresholds(stream, density, transform)

    def vote(block: Block) -> Tensor:
        tau = block.tau if transform is None else transform(block)
        return sum_tasks(trim_(tau, thresholds)).sign_().sum().double()

    majority = float(sum(stream.sum(vote).values()))
    return TrimSurvey(thresholds, float((majority > 0) - (majority < 0)))


def trim_elect_parts_(tau: Tensor, survey: TrimSurvey, reduce: str) -> Tensor:
    """Return each task's part of what `trim_elect_merge_` gives, ``(T, *shape)``; ``tau`` is written to."""
    trimmed = trim_(tau, survey.thresholds)
    return agreeing_parts(trimmed, elect_signs(trimmed, survey.tie), reduce)


def trim_elect_merge_(tau: Tensor, survey: TrimSurvey, reduce: str) -> Tensor:
    """Apply the three steps of TIES to one stack, ``(T, *shape) -> (*shape)``; ``tau`` is written to.

    Example:
        >>> survey = TrimSurvey(torch.tensor([2.0, 3.0]), tie=-1.0)
        >>> trim_elect_merge_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 1.0, -3.0]]), survey, "mean")
        tensor([ 4.,  2., -3.])
    """
    trimmed = trim_(tau, survey.thresholds)
    return combine_agreeing(trimmed, elect_signs(trimmed, survey.tie), reduce)

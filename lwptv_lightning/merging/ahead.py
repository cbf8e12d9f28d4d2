"""Decompositions that are made ahead on an accelerator, those of tensors of one shape at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lwptv_lightning.functional import decompose
from lwptv_lightning.merging.calibrated import plain
from lwptv_lightning.merging.memory import bytes_of_tensor
from lwptv_lightning.rules import MergeContext
from lwptv_lightning.task_vectors import whole

if TYPE_CHECKING:
    from lwptv_lightning.merging.combine import Job

_SHARE = 2
"""The part of a memo's limit that the work on a group may take."""


def decomposed_ahead(jobs: Mapping[str, Job], names: Sequence[str]) -> Iterator[str]:
    """Yield names one by one; when a tensor's turn comes, its tasks' matrices are decomposed, if its rule will.

    Those of the next tensors of its shape are decomposed with it, of as many as fit into half of what the memo may
    hold. They stay in the memo until the rule asks for them.
    """
    ahead: set[str] = set()
    for place, name in enumerate(names):
        if name not in ahead and (count := _at_once(name, jobs[name])):
            group = [each for each in names[place:] if each not in ahead and _are_alike(name, each, jobs)][:count]
            _decompose(group, jobs)
            ahead.update(group)
        yield name


def _at_once(name: str, job: Job) -> int:
    """Return how many tensors like one are decomposed at once; 0 where the rule decomposes no task's matrix."""
    memo, rule, stream = job.stream.execution.memo, plain(job.rule), job.stream
    is_asked = rule.decomposes_tasks and rule.treats_as_matrix(name, stream.shapes[name], len(stream.tasks))
    if memo is None or not is_asked or not job.kept.any():
        return 0
    return memo.limit // _SHARE // max(bytes_of_tensor(job.rule, stream, name), 1)


def _are_alike(name: str, other: str, jobs: Mapping[str, Job]) -> bool:
    job, own = jobs[name], jobs[other]
    shapes = job.stream.shapes[name], own.stream.shapes[other]
    return own.stream is job.stream and shapes[0] == shapes[1] and bool(_at_once(other, own))


def _decompose(group: Sequence[str], jobs: Mapping[str, Job]) -> None:
    matrices = []
    for name in group:
        job = jobs[name]
        tau = whole(job.stream.open_stack(name), job.stream.like)
        stack = plain(job.rule).as_matrices(tau, MergeContext(name, job.stream.tasks))
        matrices += [] if stack is None else [*stack]
    if matrices and (memo := jobs[group[0]].stream.execution.memo) is not None:
        memo.at_once(decompose, matrices)

"""What several merges of a `MergeModule` share: what was computed of its task vectors' matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lwptv_lightning.engine import Execution, Memo

if TYPE_CHECKING:
    from lwptv_lightning.evaluation.module import MergeModule


@contextmanager
def remembering(module: MergeModule) -> Iterator[None]:
    """Let all merges of a module's task vectors within a block share their decompositions, and forget them after it."""
    before = module.memo
    module.memo = Memo() if before is None else before
    try:
        yield
    finally:
        module.memo = before


def with_memo(options: Mapping[str, Any], memo: Memo | None) -> dict[str, Any]:
    """Return options of merging with a memo, unless their execution has its own."""
    execution = options.get("execution") or Execution()
    if memo is None or not isinstance(execution, Execution) or execution.memo is not None:
        return dict(options)
    return {**options, "execution": replace(execution, memo=memo)}

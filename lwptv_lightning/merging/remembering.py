"""Which merges remember what they compute of matrices, and how much of it."""

from __future__ import annotations

from dataclasses import replace

from lwptv_lightning.engine import Execution, Memo, Stream
from lwptv_lightning.layers import Layers
from lwptv_lightning.merging.calibrated import plain
from lwptv_lightning.merging.memory import Rules, room_to_remember
from lwptv_lightning.recipe import LiNeS, MergeRecipe


def remembering(recipe: MergeRecipe, rules: Rules, stream: Stream, thinned: Layers | None) -> Execution:
    """Return a stream's execution, with a memo where the merge goes over the model more than once, or works ahead.

    The memo may take what `room_to_remember` gives. A merge of one pass asks for nothing twice, and remembers nothing
    unless it is given the memo of others, as the candidates of a sweep are.

    Args:
        recipe: The recipe.
        rules: The rule of each of the stream's tensors.
        stream: All of the weights' task vectors.
        thinned: Layers whose elements are ranked together.
    """
    execution, scaling = stream.execution, recipe.layer_scaling
    asks_twice = any(rule.surveys_model() for rule in rules.values()) or (
        isinstance(scaling, LiNeS) and scaling.alpha is None
    )
    # Whoever learns on parts reads a tensor's task vectors beside them.
    asks_twice |= recipe.reweight is not None and recipe.prune_on == "parts"
    works_ahead = execution.device.type != "cpu" and any(plain(rule).decomposes_tasks for rule in rules.values())
    if execution.memo is None and (asks_twice or works_ahead):
        execution = replace(execution, memo=Memo())
    if execution.memo is not None:
        execution.memo.allow(room_to_remember(rules, stream, thinned))
    return execution

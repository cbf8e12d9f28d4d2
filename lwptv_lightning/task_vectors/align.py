"""Open a base and what was fine-tuned from it, and bring both to the same tensor names."""

from __future__ import annotations

from torch import nn

from lwptv_lightning.checkpoints import (
    Checkpoint,
    CheckpointSource,
    TensorHeader,
    add_difference,
    expand_adapter,
    is_adapter,
    is_task_vector,
    match_names,
    open_checkpoint,
    require_base,
    without_wrappers,
)


def open_unprefixed(source: CheckpointSource, prefix: str | None = None, ema: bool | None = None) -> Checkpoint:
    """Open a checkpoint and strip ``prefix`` where it carries one: plain files may stand beside Lightning's."""
    if prefix is None:
        return open_checkpoint(source, ema=ema)
    checkpoint = open_checkpoint(source, prefix="", ema=ema)
    carries_prefix = any(name.startswith(prefix) for name in checkpoint.names)
    return without_wrappers(checkpoint.without_prefix(prefix) if carries_prefix else checkpoint)


def align_base(raw_base: Checkpoint, model: nn.Module | None = None) -> Checkpoint:
    """Bring a base to a model's names; without a model it keeps its own."""
    if model is None:
        return raw_base
    headers = {name: TensorHeader.of(tensor) for name, tensor in model.state_dict().items()}
    return match_names(raw_base, headers, model)


def align_expert(
    expert: Checkpoint, raw_base: Checkpoint, base: Checkpoint, model: nn.Module | None = None
) -> Checkpoint:
    """Bring whole weights, an adapter or a task vector to the names of a base.

    Args:
        expert: From `open_unprefixed`.
        raw_base: The base as its file names it.
        base: The base from `align_base`.
        model: The module that ``base`` was aligned with.

    Returns:
        Fine-tuned weights, as far as they could be brought to the base's names.

    Raises:
        CheckpointError: An adapter or task vector does not belong to the base.

    Example:
        >>> import torch
        >>> base = open_checkpoint({"w": torch.zeros(2)})
        >>> align_expert(open_checkpoint({"net.w": torch.ones(2), "loss.k": torch.ones(1)}), base, base).names
        ('w',)
    """
    if is_adapter(expert):
        differences, replaced = expand_adapter(expert)
        return add_difference(differences, raw_base, base, model, replaced)
    if is_task_vector(expert):
        require_base(expert, base, *([] if raw_base is base else [raw_base]))
        return add_difference(expert, raw_base, base, model)
    return match_names(expert, base.headers, model)

"""In which library's names a file was written, where no model says so."""

from __future__ import annotations

from torch import nn

from lwptv_lightning.checkpoints import Checkpoint, CheckpointSource, open_checkpoint, skeleton_of


def naming_model(stored: Checkpoint, base: CheckpointSource, prefix: str | None = None) -> nn.Module | None:
    """Return the model in whose names a merged file was written, without weights; None where they are the base's.

    A merge with a model has its names, which for transformers may be others than those of the base's file. The
    configuration beside the base, or beside the merged file, tells that model.

    Args:
        stored: The merged file.
        base: The base that it was made from.
        prefix: What the base's wanted names start with.

    Example:
        >>> import torch
        >>> stored = open_checkpoint({"w": torch.zeros(2)})
        >>> naming_model(stored, {"w": torch.zeros(2)}) is None
        True
    """
    opened = open_checkpoint(base, prefix)
    if all(name in opened.headers for name in stored.names):
        return None
    models = (skeleton_of(each) for each in (opened, stored))
    return next((each for each in models if each is not None and set(stored.names) <= each.state_dict().keys()), None)

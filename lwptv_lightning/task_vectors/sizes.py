"""`ImageSizes`: a base and what was tuned from it are of one image size, or brought to one where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from lwptv_lightning.checkpoints import (
    Checkpoint,
    CheckpointError,
    TensorHeader,
    grids_in,
    grids_told,
    only_grid,
    resized,
)
from lwptv_lightning.registry import matcher


class ImageSizes:
    """Brings checkpoints to one image size, and remembers which tensors that changed.

    Args:
        resizes: Whether that is asked for.
        model: The module of the wanted size, which tells of oblong grids.
        exclude: Globs of the tensors that may differ.
    """

    def __init__(self, resizes: bool, model: nn.Module | None, exclude: Sequence[str] = ()) -> None:
        self.changed: dict[str, None] = {}
        self.has_changed_base = False
        self._resizes = resizes
        self._model = model
        self._is_excluded = matcher(exclude)

    def converted(self, checkpoint: Checkpoint, wanted: Mapping[str, TensorHeader]) -> Checkpoint:
        """Return a checkpoint as it is, before a converter of timm's resamples it to a model's size unasked.

        Raises:
            CheckpointError: It would, as far as names and shapes tell.
        """
        theirs, ours = only_grid(grids_in(checkpoint.headers)), only_grid(grids_in(wanted, self._model))
        if theirs is None or ours is None or self._is_excluded(ours[0]) or self._is_excluded(theirs[0]):
            return checkpoint
        (name, their_grid), (wanted_name, our_grid) = theirs, ours
        if name not in wanted and their_grid.size != our_grid.size:
            if not self._resizes:
                raise CheckpointError(f"{checkpoint.source}: the {grids_told(name, their_grid, our_grid)}")
            self.changed[wanted_name] = None
        return checkpoint

    def fitted(self, checkpoint: Checkpoint, reference: Checkpoint) -> Checkpoint:
        """Return a checkpoint at a reference's size where that is asked for, under the names that both have."""
        if not self._resizes:
            return checkpoint
        made, names = resized(checkpoint, reference, self._model)
        self.changed |= dict.fromkeys(names)
        return made

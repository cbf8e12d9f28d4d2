"""Where in a training checkpoint the weights stand, and which of them: the last ones, or averages (EMA) over steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError
from lwptv_lightning.checkpoints.names import is_averaged_model
from lwptv_lightning.checkpoints.rebuilt import Opaque, unmade_error

WRAPPERS = ("state_dict", "model_state_dict", "model")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""Where training code keeps averaged weights beside the last ones; timm's comes first."""
TAKEN = {True: "averaged (EMA) weights", False: "last weights"}
"""How the weights are called that were taken, where there are both."""
_DEEPEST = 8
"""How many mappings may lie in one another around the weights."""
_LAST_BESIDE_AVERAGED = "current_model_state"
"""Where Lightning's WeightAveraging keeps the last weights, when it puts the averaged ones into ``state_dict``."""


class Weights(NamedTuple):
    """What stands for the weights in a training checkpoint.

    Attributes:
        content: The innermost mapping.
        source: How it is called in messages.
        averaged: Whether it is the averaged weights of a file that holds the last ones, too, or the other way round;
            None where there is one kind alone.
    """

    content: Mapping[str, Any]
    source: str
    averaged: bool | None = None

    def taken_by(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return a checkpoint of these weights, which then says which they are."""
        if self.averaged is not None:
            checkpoint.averaged = self.averaged
            checkpoint.metadata["weights"] = TAKEN[self.averaged]
        return checkpoint


def weights_of(content: Mapping[str, Any], source: str, ema: bool | None, leaf: type = Tensor) -> Weights:
    """Return the innermost of mappings that hold one another as a training checkpoint its weights.

    Args:
        content: What the checkpoint holds.
        source: Its name, for messages.
        ema: Whether averaged weights are wanted; see `open_checkpoint`.
        leaf: What stands for a tensor.

    Raises:
        CheckpointError: The file holds no weights of the kind that ``ema`` asks for, or an object of another class
            stands where they would.
    """
    keys, averaged = _entries(content, source, ema, leaf)
    for _ in range(_DEEPEST):
        key = next((key for key in keys if isinstance(content.get(key), Mapping)), None)
        if key is None:
            if unmade := next((key for key in keys if isinstance(content.get(key), Opaque)), None):
                raise unmade_error(source, content[unmade].what, [unmade])
            return Weights(content, source, averaged)
        content, source = content[key], f"{source}[{key!r}]"
        keys = WRAPPERS
    raise CheckpointError(f"{source}: state dicts in one another without an end; expected tensors in one of them.")


def _entries(
    content: Mapping[str, Any], source: str, ema: bool | None, leaf: type
) -> tuple[tuple[str, ...], bool | None]:
    """Return where the wanted weights may stand, most likely first, and whether these are averaged."""
    if _LAST_BESIDE_AVERAGED in content:  # of Lightning, where the state dict is averaged
        return ((_LAST_BESIDE_AVERAGED, *WRAPPERS), False) if ema is False else (WRAPPERS, True)
    kinds: Any = Mapping | Opaque if ema else Mapping
    averaged = tuple(key for key in AVERAGED if isinstance(content.get(key), kinds))
    if not averaged:
        return WRAPPERS, None
    others = {key: value for key, value in content.items() if key not in averaged}
    if any(key in WRAPPERS or _holds(value, leaf) for key, value in others.items()):
        return (averaged, True) if ema else (WRAPPERS, False)
    if ema is False:
        raise _only_averaged(source)
    return averaged, ema


def _holds(value: Any, leaf: type) -> bool:
    return any(isinstance(each, leaf) for each in (value.values() if isinstance(value, Mapping) else (value,)))


def require_kind_of_weights(checkpoint: Checkpoint, ema: bool | None) -> None:
    """Raise a `CheckpointError` where a checkpoint does not hold the weights that ``ema`` asks for."""
    alone = is_averaged_model(checkpoint.names)
    if ema is False and alone:
        raise _only_averaged(checkpoint.source)
    if ema and not alone and not checkpoint.averaged:
        raise CheckpointError(
            f"{checkpoint.source}: no averaged (EMA) weights; expected Lightning's WeightAveraging, torch's "
            f"AveragedModel or one of {', '.join(AVERAGED)}."
        )


def _only_averaged(source: str) -> CheckpointError:
    return CheckpointError(f"{source}: holds averaged (EMA) weights alone, and ema=False asks for the last ones.")

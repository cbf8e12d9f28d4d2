"""Which of some checkpoints of one architecture the others were fine-tuned from: the one in their midst."""

from __future__ import annotations

from collections.abc import Mapping

from lwptv_lightning.checkpoints import Checkpoint

_MOST = 4_000_000
"""Elements that are compared."""
_CLEARLY = 1.1
"""How many times farther from the others the next one must be. Of unrelated changes of one size it is 1.4 times."""


def central_checkpoint(checkpoints: Mapping[str, Checkpoint]) -> str | None:
    """Return the name of the checkpoint that is nearest to all others; None where none is so clearly.

    Fine-tuned models differ from each other by the changes of both, and from their base by their own alone.

    Args:
        checkpoints: Name to checkpoint; at least three, as two are as far from each other as each from the other.

    Example:
        >>> import torch
        >>> from lwptv_lightning import open_checkpoint
        >>> base, changes = torch.zeros(1, 4), torch.eye(4)
        >>> states = {"x": base, "y": base + changes[0], "z": base + changes[1]}
        >>> central_checkpoint({name: open_checkpoint({"weight": state}) for name, state in states.items()})
        'x'
    """
    if len(checkpoints) < 3:
        return None
    distances = dict.fromkeys(checkpoints, 0.0)
    for name in _shared(checkpoints):
        tensors = {key: each.read(name).float().flatten() for key, each in checkpoints.items()}
        for key, one in tensors.items():
            distances[key] += sum(float((one - other).square().sum()) ** 0.5 for other in tensors.values())
    first, second, *_ = sorted(distances, key=distances.__getitem__)
    return first if distances[second] > _CLEARLY * distances[first] else None


def _shared(checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    """Return tensors that all have in one shape, the largest first that are not too large together."""
    first, *others = checkpoints.values()
    alike = [
        name
        for name, header in first.headers.items()
        if header.dtype.is_floating_point
        and len(header.shape) > 1
        and all(name in other.headers and other.headers[name].shape == header.shape for other in others)
    ]
    taken: list[str] = []
    count = 0
    for name in sorted(alike, key=lambda name: -first.headers[name].numel):
        if not taken or count + first.headers[name].numel <= _MOST:
            taken.append(name)
            count += first.headers[name].numel
    return taken

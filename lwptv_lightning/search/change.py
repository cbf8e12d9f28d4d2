"""How far a candidate is from the base."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lwptv_lightning.task_vectors import TaskVectors

_PIECE = 1 << 14
"""Elements that are added up at once: so few that torch adds them in one thread, in the same order for any number."""


def change_of(weights: Mapping[str, Tensor], vectors: TaskVectors) -> float | None:
    """Return the norm of the difference between a model's weights and the base's, over all tensors that are merged.

    Squares are added in float64. A tensor in another dtype than the base's is compared with the base in that dtype, so
    that the base itself has no change there.

    Args:
        weights: Name to tensor, a tied weight under the name by which it is merged; others than the merged ones do not
            count.
        vectors: The task vectors, which know the base.

    Returns:
        The norm; ``None`` where a tensor has another shape than the base's.

    Example:
        >>> vectors = TaskVectors.open({"w": torch.ones(2)}, {"a": {"w": torch.tensor([1.0, 3.0])}})
        >>> change_of({"w": torch.tensor([4.0, 5.0])}, vectors)
        5.0
    """
    merged = {*vectors.names, *vectors.averaged}
    squares: list[float] = []
    for name, tensor in weights.items():
        if name in merged:
            if tensor.shape != vectors.headers[name].shape:
                return None
            squares += _squares(tensor, vectors.base(name))
    return math.sqrt(math.fsum(squares))


def _squares(tensor: Tensor, base: Tensor) -> list[float]:
    """Return the sums of squares of the pieces of a difference."""
    place = torch.device("cpu") if tensor.device.type == "mps" else tensor.device  # which has no float64
    dtype = tensor.dtype if tensor.is_floating_point() else base.dtype
    tensor, base = tensor.detach().to(place, dtype), base.to(place, dtype)
    if tensor.numel() <= _PIECE:
        return [float((tensor.double() - base.double()).reshape(-1).square().sum())]
    pieces = zip(*(torch.split(each.reshape(-1), _PIECE) for each in (tensor, base)), strict=True)
    return torch.stack([(ours.double() - theirs.double()).square().sum() for ours, theirs in pieces]).tolist()

"""How task vectors lie to each other, and in which layers a model is how far from the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lwptv_lightning.layers import Layers
from lwptv_lightning.task_vectors import TaskVectors

_PIECE = 1 << 22
"""Elements that are multiplied at once."""


def cosines(vectors: TaskVectors) -> list[list[float]]:
    """Return the cosine of each task vector to each other's, over all merged weights, T rows of T.

    A task vector that is zero has the cosine 0 to all, and 1 to itself.

    Example:
        >>> vectors = TaskVectors.open(
        ...     {"w": torch.zeros(2)}, {"a": {"w": torch.tensor([1.0, 0.0])}, "b": {"w": torch.tensor([3.0, 4.0])}}
        ... )
        >>> [[round(each, 3) for each in row] for row in cosines(vectors)]
        [[1.0, 0.6], [0.6, 1.0]]
    """
    products = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for name in vectors.names:
        for piece in torch.split(vectors.stack(name).reshape(len(vectors), -1), _PIECE, dim=1):
            own = piece.double()
            products += own @ own.T
    lengths = products.diagonal().sqrt()
    scaled = products / lengths.clamp(min=torch.finfo(torch.float64).tiny).outer(
        lengths.clamp(min=torch.finfo(torch.float64).tiny)
    )
    rows: list[list[float]] = scaled.clamp(-1, 1).fill_diagonal_(1).tolist()
    return rows


def changes_by_layer(
    models: Mapping[str, Mapping[str, Tensor]], vectors: TaskVectors, layers: Layers
) -> dict[str, dict[str, float]]:
    """Return the norm of each model's change from the base in each layer, layer to model to norm.

    Args:
        models: Model's name to its tensors by the base's names; of those that it has not the base's count.
        vectors: The task vectors, which know the base.
        layers: The layers, in the order of execution; those without a merged tensor are left out.

    Example:
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([3.0, 4.0])}})
        >>> from lwptv_lightning import layers_from_names
        >>> changes_by_layer({"a": {"w": torch.tensor([3.0, 4.0])}}, vectors, layers_from_names(vectors.names))
        {'w': {'a': 5.0}}
    """
    merged = set(vectors.names)
    found = {}
    for layer in layers:
        names = [name for name in layer.tensors if name in merged]
        if names:
            found[layer.name] = {model: _norm(tensors, vectors, names) for model, tensors in models.items()}
    return found


def _norm(tensors: Mapping[str, Tensor], vectors: TaskVectors, names: Sequence[str]) -> float:
    squares = [
        (tensors[name].detach().cpu().double() - vectors.base(name).double()).square().sum()
        for name in names
        if name in tensors
    ]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0

"""Which tensors are matrices to the rules and modifiers that treat matrices, by name and shape."""

from __future__ import annotations

from collections.abc import Sequence

from lwptv_lightning.registry import matches


def is_matrix(shape: Sequence[int], name: str, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> bool:
    """Tell whether a tensor is a matrix, and its name among ``include`` and not among ``exclude``, which are globs.

    2-D tensors are, and weights of 1x1 convolutions, ``(out, in, 1, 1)``: linear layers at each position. No paper or
    reference of the rules here makes matrices of larger kernels, nor is a depthwise ``(out, 1, 1, 1)`` one.

    Example:
        >>> [is_matrix(shape, "conv.weight") for shape in ((4, 2), (4, 2, 1, 1), (4, 2, 3, 3), (4, 1, 1, 1))]
        [True, True, False, False]
    """
    return (len(shape) == 2 or is_pointwise(name, shape)) and matches(name, include) and not matches(name, exclude)


def is_pointwise(name: str, shape: Sequence[int]) -> bool:
    """Tell whether a tensor is the weight of a 1x1 convolution."""
    # By name too: (heads, 1, 1) may be a temperature.
    is_weight = name.rpartition(".")[2] == "weight"
    return is_weight and len(shape) > 2 and shape[1] > 1 and all(size == 1 for size in shape[2:])

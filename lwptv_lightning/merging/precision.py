"""Merged values in the dtype of what holds them, which they must not overflow."""

import math

import torch
from torch import Tensor

from lwptv_lightning.registry import shown


def in_dtype(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values in another dtype, or themselves where they have it.

    Raises:
        ValueError: A value is beyond the dtype's largest, so that it would become infinite or NaN, or is one already.
            The message names the tensor.

    Example:
        >>> in_dtype("w", torch.tensor([70000.0]), torch.float16)
        Traceback (most recent call last):
        ValueError: 'w' would overflow: its largest merged value is 70000, beyond 65504, the largest of torch.float16...
    """
    cast = values.to(dtype)
    if not values.is_floating_point() or not values.numel():
        return cast
    least, most = (float(end) for end in values.detach().aminmax())
    largest, limit = max(-least, most), torch.finfo(dtype).max
    # Up to half a step above the limit a value is rounded to it.
    if largest <= limit or largest < limit * (1 + torch.finfo(dtype).eps / 4):
        return cast
    if math.isnan(largest):
        raise ValueError(f"{shown(name)} holds NaN; expected finite weights, and sums that do not overflow on the way.")
    raise ValueError(
        f"{shown(name)} would overflow: its largest merged value is {largest:g}, beyond {limit:g}, the largest of "
        f"{dtype}. Give a smaller scale, or a base and a model in a dtype of more range, such as torch.float32."
    )

"""Tell whether two checkpoints hold the same weights, to the bit and whatever their format."""

from __future__ import annotations

import hashlib

import torch

from lwptv_lightning.checkpoints.checkpoint import Checkpoint


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of a checkpoint's floating tensors, read one at a time.

    Name, dtype, shape and bytes of each floating tensor enter, in the order of the sorted names. Format, file, order
    and integer tensors do not.

    Args:
        checkpoint: An open checkpoint.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> from lwptv_lightning import open_checkpoint
        >>> fingerprint(open_checkpoint({"w": torch.zeros(2), "steps": torch.tensor(7)}))[:8]
        'f03e39f8'
    """
    digest = hashlib.sha256()
    for name in sorted(checkpoint.names):
        header = checkpoint.headers[name]
        if header.dtype.is_floating_point:
            digest.update(f"{name} {header.dtype} {list(header.shape)}\n".encode())
            # NumPy has no bfloat16, and a 0-d tensor cannot be viewed as another dtype.
            digest.update(checkpoint.read(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""Tensors that wait in a file until it is known under which names they are written, one in memory at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import TensorHeader


class Spool:
    """A file of tensors, to be written to and read from until it is closed.

    Args:
        path: The file, which is made anew.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     spool = Spool(Path(folder, "spool"))
        ...     spool.put("a", torch.tensor([[1.0, 2.0]]))
        ...     tensor = spool.read("a")
        ...     spool.close()
        >>> tensor
        tensor([[1., 2.]])
    """

    def __init__(self, path: Path) -> None:
        self.headers: dict[str, TensorHeader] = {}
        """Name to shape and dtype of what is in it."""
        self._places: dict[str, int] = {}
        self._file = path.open("w+b")

    def put(self, name: str, tensor: Tensor) -> None:
        """Append a tensor."""
        self.headers[name], self._places[name] = TensorHeader.of(tensor), self._file.seek(0, 2)
        # Bytes, since numpy does not know every dtype.
        self._file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def read(self, name: str) -> Tensor:
        """Read a tensor."""
        header = self.headers[name]
        self._file.seek(self._places[name])
        tensor = torch.empty(header.shape, dtype=header.dtype)
        self._file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return tensor

    def close(self) -> None:
        """Close the file."""
        self._file.close()

"""Fingerprints, which tell whether weights are the same: of a whole model, and of single tensors.

They are made by BLAKE3, which takes half the time of SHA-256 and lets the tensors of one model be hashed at once. Files
of earlier versions hold those by SHA-256; what is compared with such a one is made like it.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, TensorHeader
from lwptv_lightning.registry import require_kind, steps_of

if TYPE_CHECKING:
    from blake3 import blake3

_PREFIX = "b3_"
"""What fingerprints by BLAKE3 begin with; those by SHA-256 are hexadecimal digits alone."""
UNKNOWN = _PREFIX + "0" * 64
"""What stands in the place of a fingerprint until it is known."""
_DIGITS = 32
"""Hexadecimal digits of a single tensor's fingerprint."""
_COPIED_AT_ONCE = 1 << 24
"""Bytes of a strided tensor that are copied to be hashed."""
_DEALT = 1 << 24
"""Bytes of tensors that a thread hashes before it asks for more; what is left in the end is hashed at once."""
_HELD = 1 << 28
"""Bytes of tensors that wait for their threads: those that are not mapped but made take memory."""
_DIGESTS: WeakKeyDictionary[Checkpoint, dict[str, str]] = WeakKeyDictionary()
"""The hexadecimal BLAKE3 of each tensor that has been hashed."""
_BY_SHA256: WeakKeyDictionary[Checkpoint, dict[str | None, str]] = WeakKeyDictionary()
"""The fingerprints by SHA-256 that have been computed, of single tensors and, as None, of all."""
_Key = TypeVar("_Key")


def fingerprint(checkpoint: Checkpoint, like: str | None = None) -> str:
    """Return a hash of a checkpoint's floating and complex tensors: ``b3_`` and 64 hexadecimal digits.

    Name, dtype, shape and bytes of each of these enter, in the order of the sorted names. Format, file, order
    and integer tensors do not. It is remembered as long as the checkpoint lives, whose tensors do not change.

    Args:
        checkpoint: Is read tensor by tensor, and hashed by as many threads as torch may use.
        like: A fingerprint to compare with, by whose algorithm to make it: of earlier versions, it is the SHA-256.

    Example:
        >>> from lwptv_lightning import open_checkpoint
        >>> fingerprint(open_checkpoint({"w": torch.zeros(2), "steps": torch.tensor(7)}))[:11]
        'b3_9ae7123d'
    """
    return fingerprints({None: checkpoint}, like)[None]


def fingerprints(checkpoints: Mapping[_Key, Checkpoint], like: str | None = None) -> dict[_Key, str]:
    """Return the `fingerprint` of each of some checkpoints; see there."""
    for checkpoint in checkpoints.values():
        require_kind("a fingerprint's checkpoint", checkpoint, Checkpoint, "an open Checkpoint, from open_checkpoint")
    if _is_sha256(like):
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return dict(zip(checkpoints, threads.map(_whole_by_sha256, checkpoints.values()), strict=True))
    _hash((checkpoint, _floating(checkpoint)) for checkpoint in checkpoints.values())
    return {key: _whole(checkpoint) for key, checkpoint in checkpoints.items()}


def tensor_fingerprint(checkpoint: Checkpoint, name: str, like: str | None = None) -> str:
    """Return a hash of one tensor's dtype, shape and bytes, ``b3_`` and 32 hexadecimal digits; remembered likewise.

    By these, parts of two models are known to be the same where the rest, such as a classifier, is not.
    """
    if _is_sha256(like):
        known = _BY_SHA256.setdefault(checkpoint, {})
        if name not in known:
            header, digest = checkpoint.headers[name], hashlib.sha256()
            digest.update(_described(header))
            _add(digest, checkpoint.read(name))
            known[name] = digest.hexdigest()[:_DIGITS]
        return known[name]
    _hash([(checkpoint, [name])])
    return _PREFIX + _DIGESTS[checkpoint][name][:_DIGITS]


def tensor_fingerprints(checkpoint: Checkpoint, expected: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the fingerprint of each floating tensor, or of those of which one is expected, by its algorithm."""
    names = [name for name in _floating(checkpoint) if expected is None or name in expected]
    expected = expected or {}
    _hash([(checkpoint, [name for name in names if not _is_sha256(expected.get(name))])])
    return {name: tensor_fingerprint(checkpoint, name, expected.get(name)) for name in names}


def _floating(checkpoint: Checkpoint) -> Iterator[str]:
    kinds = ((name, header.dtype) for name, header in checkpoint.headers.items())
    return (name for name, dtype in kinds if dtype.is_floating_point or dtype.is_complex)


def _is_sha256(like: str | None) -> bool:
    return like is not None and not str(like).startswith(_PREFIX)  # a checkpoint of a run may hold anything


def _whole(checkpoint: Checkpoint) -> str:
    from blake3 import blake3

    digests = _DIGESTS[checkpoint]
    # As JSON, in which nothing that a name holds can be taken for another name, or for a digest.
    found = [[name, digests[name]] for name in sorted(_floating(checkpoint))]
    return _PREFIX + blake3(json.dumps(found).encode()).hexdigest()


def _hash(wanted: Iterable[tuple[Checkpoint, Iterable[str]]]) -> None:
    """Hash the tensors that are not known yet: they are read here one by one, and dealt to threads, some at a time."""
    jobs: deque[tuple[int, Future[None]]] = deque()
    part: list[_Read] = []
    held = size = 0
    wanted = [(checkpoint, list(names)) for checkpoint, names in wanted]
    total = sum(checkpoint.headers[name].nbytes for checkpoint, names in wanted for name in names)
    reads = steps_of(_unknown(wanted), "Hashing weights", total, lambda read: read.header.nbytes)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for read in reads:
            part.append(read)
            size += read.header.nbytes
            if size >= _DEALT:
                jobs.append((size, threads.submit(_note, part)))
                part, held, size = [], held + size, 0
                while held > _HELD and len(jobs) > 1:
                    done, job = jobs.popleft()
                    job.result()
                    held -= done
        _note(part)
        for _, job in jobs:
            job.result()


class _Read(NamedTuple):
    """A tensor that was read, and what is known of its checkpoint's."""

    known: dict[str, str]
    name: str
    header: TensorHeader
    tensor: Tensor


def _unknown(wanted: Iterable[tuple[Checkpoint, Iterable[str]]]) -> Iterator[_Read]:
    for checkpoint, names in wanted:
        known = _DIGESTS.setdefault(checkpoint, {})
        for name in names:
            if name not in known:
                yield _Read(known, name, checkpoint.headers[name], checkpoint.read(name))


def _note(part: Iterable[_Read]) -> None:
    from blake3 import blake3

    for known, name, header, tensor in part:
        digest = blake3(_described(header))
        _add(digest, tensor)
        known[name] = digest.hexdigest()


def _whole_by_sha256(checkpoint: Checkpoint) -> str:
    known = _BY_SHA256.setdefault(checkpoint, {})
    if None not in known:
        digest = hashlib.sha256()
        for name in sorted(_floating(checkpoint)):
            digest.update(f"{name} ".encode() + _described(checkpoint.headers[name]))
            _add(digest, checkpoint.read(name))
        known[None] = digest.hexdigest()
    return known[None]


def _described(header: TensorHeader) -> bytes:
    return f"{header.dtype} {list(header.shape)}\n".encode()


def _add(digest: hashlib._Hash | blake3, tensor: Tensor) -> None:
    """Add a tensor's bytes, in the order of its elements."""
    tensor = tensor.reshape(tensor.shape or 1)
    in_place = tensor.is_contiguous() and tensor.device.type == "cpu"
    rows = max(len(tensor) if in_place else len(tensor) * _COPIED_AT_ONCE // max(tensor.nbytes, 1), 1)
    for start in range(0, len(tensor), rows):
        # NumPy has no bfloat16, and only a contiguous tensor can be viewed as bytes.
        part: Any = tensor[start : start + rows].cpu().contiguous()
        digest.update(part.reshape(-1).view(torch.uint8).numpy().data)

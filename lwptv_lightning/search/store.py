"""`Store`: a folder in which each candidate that was measured is a file of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.files import remove_stale, write_whole
from lwptv_lightning.registry import parse_json, printable, require_kind

_FORMAT = "lwptv sweep 1"


@dataclass(frozen=True)
class Found:
    """What is known of a candidate once it was measured.

    Attributes:
        outcomes: Loader name to whether each sample was classified correctly, ``(N,)`` bool.
        seconds: How long its merge took on its own.
        change: Norm of its change from the base; ``None`` where that is not known.
    """

    outcomes: Mapping[str, Tensor]
    seconds: float
    change: float | None


@dataclass(frozen=True)
class Store:
    """Files by what decides their content: of a candidate that, and apart from it the data that it was measured on.

    A file is whole or absent whenever a process is killed, and of several processes that write the same one the last
    counts, which has the same figures. It says of itself what it is of, and holds a checksum.

    Args:
        folder: Is made where it is not there.

    Raises:
        NotADirectoryError: Something else has its name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = Store(Path(folder))
        ...     right = {"id/a": torch.tensor([True, False])}
        ...     store.keep({"recipe": "ties"}, {"id/a": [2, "f0"]}, Found(right, 0.1, 2.0))
        ...     found = store.find({"recipe": "ties"}, {"id/a": [2, "f0"]})
        ...     found.outcomes["id/a"].tolist(), store.find({"recipe": "ties"}, {"id/a": [2, "f1"]})
        ([True, False], None)
    """

    folder: Path

    @classmethod
    def at(cls, folder: str | Path) -> Store:
        """Return the store of a folder, in which files can be written.

        Raises:
            TypeError: It is no path.
            OSError: Nothing can be written there.
        """
        require_kind("store", folder, str | Path, "a folder")
        path = Path(folder)
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"store: {printable(path)} is no folder; name one, or what is not there yet.")
        # Known before the work, which may be long.
        write_whole(path / _ABOUT, _README)
        remove_stale(path)
        return cls(path)

    def has(self, about: Mapping[str, Any]) -> bool:
        """Tell whether a candidate was measured, on whatever data."""
        return any(self.folder.glob(f"{_key(about)}-*.json"))

    def find(self, about: Mapping[str, Any], data: Mapping[str, Any]) -> Found | None:
        """Return what was found of a candidate on some data; ``None`` where that is not there, or damaged.

        Args:
            about: All that decides what a candidate makes of data, as plain values.
            data: What tells the data from others: loader name to number of samples and digest.

        Warns:
            UserWarning: A file is damaged.
        """
        path, content = self._path(about, data), None
        try:
            content = _read(path, {"about": dict(about), "data": dict(data)})
            if content is not None:
                return _found(content["found"], data)
        except (ValueError, KeyError, TypeError, OSError) as error:
            _warn_of(path, error)
        return None

    def keep(self, about: Mapping[str, Any], data: Mapping[str, Any], found: Found) -> None:
        """Write what was found of a candidate."""
        outcomes = {name: _packed(outcome) for name, outcome in found.outcomes.items()}
        plain = {"outcomes": outcomes, "seconds": found.seconds, "change": found.change}
        _write(self._path(about, data), {"about": dict(about), "data": dict(data), "found": plain})

    def recall(self, about: Mapping[str, Any]) -> Any:
        """Return what `remember` was given; ``None`` where there is none, or it is damaged, of which it warns."""
        path = self.folder / f"{_key(about)}.json"
        try:
            content = _read(path, {"about": dict(about)})
            return None if content is None else content["found"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            _warn_of(path, error)
            return None

    def remember(self, about: Mapping[str, Any], found: Any) -> None:
        """Write plain values, such as a recipe that was learnt."""
        _write(self.folder / f"{_key(about)}.json", {"about": dict(about), "found": found})

    def _path(self, about: Mapping[str, Any], data: Mapping[str, Any]) -> Path:
        return self.folder / f"{_key(about)}-{_key(data)[:16]}.json"


_ABOUT = "about.txt"
_README = """\
What a sweep of lwptv-lightning has measured: each file is of one recipe, or of other weights, on one set of data.
A sweep that is run again goes on where it was. Whatever is removed here is measured anew.
"""


def _key(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(value).encode()).hexdigest()[:40]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = _text(content)
    whole = {"format": _FORMAT, "checksum": hashlib.sha256(text.encode()).hexdigest(), "content": json.loads(text)}
    write_whole(path, json.dumps(whole, indent=1) + "\n")


def _read(path: Path, expected: Mapping[str, Any]) -> Any:
    """Return the content of a file; ``None`` where there is none.

    Raises:
        ValueError: It is damaged, or of something else than expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    whole = parse_json(text, "the file")
    content = whole["content"]
    if whole["format"] != _FORMAT or hashlib.sha256(_text(content).encode()).hexdigest() != whole["checksum"]:
        raise ValueError("its checksum is another")
    for name, value in expected.items():
        if _text(content[name]) != _text(value):
            raise ValueError(f"it is {name} something else")
    return content


def _packed(outcome: Tensor) -> dict[str, Any]:
    """Return outcomes ``(N,)`` bool as text, eight in a byte."""
    bits = torch.zeros(-(-len(outcome) // 8) * 8, dtype=torch.uint8)
    bits[: len(outcome)] = outcome.to("cpu", torch.uint8)
    places = 2 ** torch.arange(8, dtype=torch.uint8)
    data = (bits.reshape(-1, 8) * places).sum(1, dtype=torch.uint8).numpy().tobytes()
    return {"samples": len(outcome), "right": base64.b64encode(data).decode()}


def _found(plain: Mapping[str, Any], data: Mapping[str, Any]) -> Found:
    outcomes = {}
    for name, (samples, _) in data.items():
        packed = torch.tensor(list(base64.b64decode(plain["outcomes"][name]["right"])), dtype=torch.uint8)
        bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        if plain["outcomes"][name]["samples"] != samples or len(packed) != -(-samples // 8):
            raise ValueError(f"it has other samples of {name!r} than it says")
        outcomes[name] = bits.reshape(-1)[:samples].bool()
    return Found(outcomes, float(plain["seconds"]), plain["change"])


def _warn_of(path: Path, error: Exception) -> None:
    told = f"{type(error).__name__}: {error}" if isinstance(error, KeyError | TypeError) else str(error)
    warnings.warn(f"{printable(path)} is damaged ({printable(told)}), and is measured anew.", stacklevel=4)

"""What every candidate got right, sample by sample, in files that are whole or absent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lwptv_lightning.files import Stage

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Outcome:
    """One candidate.

    Attributes:
        about: What it is: step, scale, norm of the change, and the key under which it is stored.
        correct: ``"<split>:<loader>"`` to whether each sample was classified correctly, ``(N,)`` bool.
    """

    about: Mapping[str, object]
    correct: Mapping[str, NDArray[np.bool_]]

    def of(self, split: str) -> dict[str, NDArray[np.bool_]]:
        """Return the outcomes of one split, by loader."""
        named = {name.partition(":")[::2]: correct for name, correct in self.correct.items()}
        return {loader: correct for (own, loader), correct in named.items() if own == split}

    def average(self, split: str, prefix: str) -> float:
        """Return the mean over sets of the accuracy, as a fraction."""
        found = [correct.mean() for loader, correct in self.of(split).items() if loader.startswith(prefix)]
        return float(np.mean(found))


def key_of(*parts: object) -> str:
    """Return a name for what depends on these values alone."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Store:
    """The outcomes in a folder.

    Args:
        folder: Made where it is missing.
    """

    folder: Path

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    def get(self, key: str) -> Outcome | None:
        """Return what is stored under a key."""
        if not self.path(key).is_file():
            return None
        with np.load(self.path(key)) as stored:
            about = json.loads(str(stored["about"]))
            sizes = about.pop("sizes")
            about["key"] = key
            correct = {name: np.unpackbits(stored[name], count=size).astype(bool) for name, size in sizes.items()}
        return Outcome(about, correct)

    def put(self, key: str, outcome: Outcome) -> None:
        """Store one candidate; a process that is killed meanwhile leaves nothing of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {**outcome.about, "sizes": {name: len(correct) for name, correct in outcome.correct.items()}}
        packed = {name: np.packbits(correct) for name, correct in outcome.correct.items()}
        with Stage(self.path(key)) as stage:
            np.savez_compressed(stage.folder / "outcome.npz", about=np.array(json.dumps(about)), **packed)
            stage.install("outcome.npz", self.path(key))

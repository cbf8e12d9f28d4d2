"""Folders of images below a folder: what they are called, which split of which domain they are, and their classes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SPLITS = {
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("val", "valid", "validation", "dev"),
    "train": ("train", "training"),
}
_DOMAINS = {
    "id": ("id", "ind", "in-domain", "in_domain", "indomain", "in-distribution", "in_distribution"),
    "ood": ("ood", "out-of-domain", "out_of_domain", "out-of-distribution", "out_of_distribution"),
}
_GROUPS = ("near", "far")
_PARTS = re.compile(r"[\s_.\-]+")


@dataclass(frozen=True)
class FoundSet:
    """A folder with one sub-folder of images for each class.

    Attributes:
        path: The folder.
        parts: What its path says besides split, domain and group.
        split: ``"test"``, ``"validation"``, ``"train"`` or ``""``.
        domain: ``"id"``, ``"ood"`` or ``""``, as the path says.
        group: The OOD group, or ``""``.
        classes: The names of its classes.
    """

    path: Path
    parts: tuple[str, ...]
    split: str
    domain: str
    group: str
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the set is called."""
        return self.parts[-1] if self.parts else self.path.name


def find_sets(folder: Path) -> list[FoundSet]:
    """Return the sets of images below a folder, whatever lies between."""
    from lwptv_lightning.evaluation import is_left_alone

    found = []
    for place, names, _files in os.walk(folder):
        names[:] = sorted(name for name in names if not is_left_alone(name) and not name.startswith("__"))
        here = Path(place)
        if classes := [name for name in names if _has_images(here / name)]:
            found.append(_described(here, folder, tuple(classes)))
            names[:] = []
    return found


def _has_images(folder: Path) -> bool:
    from lwptv_lightning.evaluation import IMAGES, is_left_alone

    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(IMAGES) and not is_left_alone(entry.name) for entry in entries)
    except OSError:
        return False


def _described(path: Path, root: Path, classes: tuple[str, ...]) -> FoundSet:
    split = domain = group = ""
    parts: list[str] = []
    for part in path.relative_to(root).parts:
        word = part.casefold()
        if (found := _of(word, _SPLITS)) and not split:
            split = found
        elif (found := _of(word, _DOMAINS)) and not domain:
            domain, parts = found, []  # what stands before it is no part of the name
        elif word in _GROUPS and not group:
            group, domain = word, domain or "ood"
        else:
            parts.append(part)
    if domain == "ood" and not group and len(parts) > 1:
        group = parts[-2]
    name, own = _without_split(parts[-1]) if parts else ("", "")
    if own and not split:
        parts[-1], split = name, own
    return FoundSet(path, tuple(parts), split, domain, group, classes)


def _of(word: str, kinds: dict[str, tuple[str, ...]]) -> str:
    return next((kind for kind, words in kinds.items() if word in words), "")


def _without_split(name: str) -> tuple[str, str]:
    """Return a name without the word before or behind it that says which split it is, ``cats_test``, and that split."""
    words = _PARTS.split(name)
    for place, rest in ((0, name[len(words[0]) :]), (-1, name[: len(name) - len(words[-1])])):
        if len(words) > 1 and (found := _of(words[place].casefold(), _SPLITS)):
            return _PARTS.sub("", rest[:1]) + rest[1:-1] + _PARTS.sub("", rest[-1:]), found
    return name, ""


def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name, small.

    Example:
        >>> words_of("Resnet18_cats-v2")
        ('resnet18', 'cats', 'v2')
    """
    return tuple(word for word in _PARTS.split(name.casefold()) if word)


def bare(name: str) -> str:
    """Return a name's letters and digits, small, to compare it with others.

    Example:
        >>> bare("Cars 2") == bare("cars_2")
        True
    """
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def chosen(sets: Iterable[FoundSet], order: tuple[str, ...]) -> FoundSet | None:
    """Return the set of the first of some splits that there is."""
    known = {each.split: each for each in sets}
    return next((known[split] for split in order if split in known), None)

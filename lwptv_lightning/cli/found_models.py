"""Checkpoints below a folder: which of them is the base, and what the tasks are called."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lwptv_lightning.cli.found_sets import words_of
from lwptv_lightning.registry import ConfigurationError, nearest, printable_name

if TYPE_CHECKING:
    from lwptv_lightning.checkpoints import Checkpoint

_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
_FOLDERS = ("config.json", "open_clip_config.json", "adapter_config.json", "*.safetensors.index.json", ".metadata")
"""What makes a folder one model."""
_BASE = {
    "base",
    "pretrained",
    "pretrain",
    "zeroshot",
    "init",
    "initial",
    "original",
    "foundation",
    "backbone",
    "theta0",
}
_OTHERS = re.compile(r"(^|\.)heads\.safetensors$|optimizer|scheduler|training_args|rng_state|trainer_state")
_PROGRESS = re.compile(
    r"(?:(?:^|[-_. ]+)(?:(?:epoch|step)[=_-]?\d+|(?:val|valid)[^=]*=[\d.]+|checkpoint-\d+|(?:last|best)-v\d+"
    r"|last|best|final|checkpoint|model))+$",
    re.I,
)
_FOLDERS_OF_RUNS = re.compile(
    r"version_\d+|checkpoints?|ckpts?|lightning_logs|logs|runs?|outputs?|models?|weights", re.I
)


@dataclass
class FoundModels:
    """What checkpoints there are.

    Attributes:
        base: The base's path.
        tasks: Task name to path.
        opened: Path to checkpoint.
        left_out: Path to why it is none of them.
        why: How the base was told, in words.
    """

    base: Path
    tasks: dict[str, Path]
    opened: dict[Path, Checkpoint]
    left_out: dict[Path, str] = field(default_factory=dict)
    why: str = ""


def find_models(
    folder: Path, base: str | None, track: Callable[[Iterable[Path], int], Iterable[Path]] = lambda paths, count: paths
) -> FoundModels:
    """Return base and tasks among the checkpoints below a folder.

    Args:
        folder: Where to look.
        base: The base's path or name, where it is said.
        track: Wraps the paths that are opened, such as in a bar of progress.

    Raises:
        ConfigurationError: There are fewer than two, or it cannot be told which is the base.
    """
    from lwptv_lightning.checkpoints import is_adapter, open_checkpoint

    opened, left_out = {}, {}
    paths = _candidates(folder)
    for path in track(paths, len(paths)):
        try:
            opened[path] = open_checkpoint(path)
        except (ValueError, OSError) as error:
            left_out[path] = str(error)
    if len(opened) < 2:
        found = ", ".join(printable_name(path.relative_to(folder)) for path in opened) or "none"
        reason = next((f" {reason}" for reason in left_out.values()), "")
        raise ConfigurationError(
            "",
            f"{str(folder)!r} has too few checkpoints: expected a base and what was fine-tuned from it, "
            f"found {found}.{reason}",
        )
    _leave_others_of_a_run(folder, opened, left_out, base)
    whole = [path for path in opened if not is_adapter(opened[path])]
    which, why = _base_of(folder, whole, opened, base)
    tasks = _fitting(which, opened, left_out)
    if not tasks:
        raise ConfigurationError(
            "--base", f"no other checkpoint is of the architecture of {str(which)!r}: {next(iter(left_out.values()))}"
        )
    return FoundModels(which, _named(folder, tasks, which), opened, left_out, why)


def _candidates(folder: Path) -> list[Path]:
    found = []
    for place, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith((".", "__")))
        here = Path(place)
        weights = [name for name in sorted(files) if name.lower().endswith(_FILES) and not _OTHERS.search(name)]
        is_model = any(next(here.glob(pattern), None) for pattern in _FOLDERS)
        if is_model and here != folder and (weights or (here / ".metadata").is_file()):
            found.append(here)
            names[:] = []
        else:
            found += [here / name for name in weights]
    return found


def _leave_others_of_a_run(
    folder: Path, opened: dict[Path, Checkpoint], left_out: dict[Path, str], said: str | None
) -> None:
    """Keep one of the checkpoints that a run left in its folder: the best, the last, or that of most steps."""
    runs: dict[tuple[Path, str], list[Path]] = {}
    for path in opened:
        name = Path(_label(path, folder)).name
        found = _PROGRESS.search(name)
        is_said = said is not None and said in _texts_of(path, folder)
        if found is not None and found[0].casefold().strip("-_. ") != "model" and not is_said:
            runs.setdefault((path.parent, name[: found.start()]), []).append(path)
    for paths in runs.values():
        kept = max(paths, key=lambda path: _progress_of(Path(_label(path, folder)).name))
        for path in paths:
            if path != kept:
                left_out[path] = f"of the same run as {kept.name}, which is taken"
                del opened[path]


def _progress_of(name: str) -> tuple[bool, bool, list[int], str]:
    words = name.casefold()
    return "best" in words, "last" in words or "final" in words, [int(each) for each in re.findall(r"\d+", words)], name


def _base_of(
    folder: Path, whole: Sequence[Path], opened: Mapping[Path, Checkpoint], said: str | None
) -> tuple[Path, str]:
    from lwptv_lightning.inspection import central_checkpoint

    if said is not None:
        return _said(folder, whole, said), "as --base says"
    if len(whole) == 1:
        return whole[0], "the others are adapters"
    words = {path: {*words_of(re.sub(r"[/\\\\]", " ", _label(path, folder)))} for path in whole}
    common = set.intersection(*words.values())
    named = [path for path in whole if (words[path] - common) & _BASE]
    if len(named) == 1:
        return named[0], "by its name"
    known = named or whole
    central = central_checkpoint({str(path): opened[path] for path in whole})
    if central is not None and Path(central) in known:
        return Path(central), "the nearest to all others"
    listed = ", ".join(printable_name(path.relative_to(folder)) for path in known)
    raise ConfigurationError(
        "--base", f"it cannot be told which checkpoint the others were fine-tuned from; say one of {listed}."
    )


def _said(folder: Path, whole: Sequence[Path], said: str) -> Path:
    found = [path for path in whole if said in _texts_of(path, folder)]
    found = found or [path for path in whole if Path(said).resolve() == path.resolve()]
    if len(found) == 1:
        return found[0]
    known = [str(path.relative_to(folder)) for path in whole]
    what = "several checkpoints are called so" if found else f"there is no checkpoint {said!r} in {str(folder)!r}"
    raise ConfigurationError("--base", f"{what}.{nearest(said, known) or f' It has {chr(44).join(known)}.'}")


def _texts_of(path: Path, folder: Path) -> set[str]:
    """Return what a user may call a checkpoint."""
    return {str(path), str(path.resolve()), str(path.relative_to(folder)), path.name, path.stem}


def _fitting(base: Path, opened: Mapping[Path, Checkpoint], left_out: dict[Path, str]) -> list[Path]:
    """Return the checkpoints of the base's architecture; of adapters and task vectors it shows when they are read."""
    from lwptv_lightning.checkpoints import is_adapter, is_task_vector

    own, fitting = opened[base].headers, []
    for path, each in opened.items():
        if path == base:
            continue
        shared = [name for name, header in each.headers.items() if name in own and own[name].shape == header.shape]
        if is_adapter(each) or is_task_vector(each) or 2 * len(shared) >= max(len(own), len(each.headers)):
            fitting.append(path)
        else:
            left_out[path] = f"it shares {len(shared)} of {len(each.headers)} tensors with the base"
    return fitting


def _label(path: Path, folder: Path) -> str:
    """Return a checkpoint's path below the folder without its ending."""
    inner = path.relative_to(folder)
    return str(
        inner
        if path.is_dir()
        else inner.with_name(re.sub(r"(?i)(\.pth)?\.(safetensors|pt|pth|ckpt|bin|tar)$", "", inner.name))
    )


def _named(folder: Path, paths: Sequence[Path], base: Path) -> dict[str, Path]:
    """Return task names: file names, or those of their folders, without what all have in common."""
    labels = {path: Path(_label(path, folder)) for path in paths}
    names = {path: _PROGRESS.sub("", label.name) for path, label in labels.items()}
    if not _tell_apart(names):
        above = {path: label.parent.name for path, label in labels.items()}
        is_run = any(_FOLDERS_OF_RUNS.fullmatch(each) for each in above.values())
        choices = [{} if is_run else above, _by_folders(labels), {path: str(label) for path, label in labels.items()}]
        names = next(each for each in choices if each and (_tell_apart(each) or each is choices[-1]))
    others = [_PROGRESS.sub("", Path(_label(base, folder)).name)] if len(paths) == 1 else []
    short = _without_common([*names.values(), *others])[: len(paths)]
    if len({*short}) < len(paths) or not all(short):
        short = [*names.values()]
    return {re.sub(r"[/\\]+", "_", name): path for name, path in zip(short, names, strict=True)}


def _tell_apart(names: Mapping[Path, str]) -> bool:
    return all(names.values()) and len({*names.values()}) == len(names)


def _by_folders(labels: Mapping[Path, Path]) -> dict[Path, str]:
    """Return names by the folders that are not those of every run: cats of ``runs/cats/version_0/checkpoints``."""
    parts = {path: [*label.parts[:-1], _PROGRESS.sub("", label.name)] for path, label in labels.items()}
    common = set.intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    own = {path: [each for each in found if each and each not in common] for path, found in parts.items()}
    short = {
        path: "_".join(each for each in found if not _FOLDERS_OF_RUNS.fullmatch(each)) for path, found in own.items()
    }
    return short if _tell_apart(short) else {path: "_".join(found) for path, found in own.items()}


def _without_common(names: Sequence[str]) -> list[str]:
    """Return names without the words that all begin and end with.

    Example:
        >>> _without_common(["resnet18_cats_ft", "resnet18_wild dogs_ft"])
        ['cats', 'wild dogs']
    """
    pieces = [re.split(r"([\s_.\-]+)", name) for name in names]
    if len(names) < 2:
        return list(names)
    for end in (0, -1):
        while all(len(each) > 2 for each in pieces) and len({each[end].casefold() for each in pieces}) == 1:
            pieces = [each[2:] if end == 0 else each[:-2] for each in pieces]
    return ["".join(each) for each in pieces]

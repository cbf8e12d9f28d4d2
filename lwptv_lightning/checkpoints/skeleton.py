"""The module that a library builds of the configuration beside a checkpoint, without weights.

Only timm, transformers and open_clip build here, each by its own code: a file cannot name code of its own.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lwptv_lightning.checkpoints.checkpoint import Checkpoint
from lwptv_lightning.checkpoints.library_names import model_names
from lwptv_lightning.checkpoints.names import _json
from lwptv_lightning.registry import shown

_REPEATS = ("layer", "depth", "block", "stage", "repeat")
_WIDTHS = ("hidden", "width", "dim", "embd", "inner", "intermediate", "channel", "vocab", "mlp", "size")
"""Parts of what libraries call the number of a model's layers, and their sizes."""
_MOST_LAYERS = 1_000
_WIDER = 8
"""How many times as wide as the widest tensor of a file a model may be that is built in memory."""


def skeleton_of(checkpoint: Checkpoint) -> nn.Module | None:
    """Return the model that the configuration beside a checkpoint describes, on the meta device where it can be.

    None where there is no configuration, the library that reads it is not installed, or it builds no such model; so do
    models whose code lies in the checkpoint's folder, which is not run.

    Example:
        >>> skeleton_of(Checkpoint("memory", {}, reader=None)) is None
        True
    """
    built, _ = _attempts(checkpoint)
    names = set(checkpoint.names)
    return max(built, key=lambda model: len(names & model_names(model, checkpoint.names).keys()), default=None)


def skeleton_problem(checkpoint: Checkpoint) -> str | None:
    """Return why no model is built of the configuration beside a checkpoint; None where one is, or there is none.

    Example:
        >>> skeleton_problem(Checkpoint("memory", {}, reader=None)) is None
        True
    """
    built, problems = _attempts(checkpoint)
    return "; ".join(problems) if problems and not built else None


def _attempts(checkpoint: Checkpoint) -> tuple[list[nn.Module], list[str]]:
    """Return the models that libraries build, and why others build none of what is theirs."""
    if (folder := checkpoint.folder) is None:
        return [], []
    plain, of_clip = _json(folder / "config.json"), _json(folder / "open_clip_config.json")
    known: list[tuple[bool, str, Callable[[str], nn.Module]]] = [
        ("architectures" in plain, "transformers", lambda _: _of_transformers(folder, plain)),
        ("architecture" in plain, "timm", lambda _: _of_timm(folder)),
        ("model_cfg" in of_clip, "open_clip", lambda device: _of_open_clip(folder, device)),
    ]
    wanted = [(library, build) for is_there, library, build in known if is_there]
    # A stranger's model of a billion layers takes for ever to build even without memory, and a wide one takes it all.
    if _largest((plain, of_clip), _REPEATS) > max(_MOST_LAYERS, len(checkpoint.names)):
        return [], [f"the model for {library} has too many layers for its file" for library, _ in wanted]
    widest = max((max(header.shape, default=1) for header in checkpoint.headers.values()), default=1)
    places = ("meta", "cpu") if _largest((plain, of_clip), _WIDTHS) <= _WIDER * widest else ("meta",)
    attempts = [_tried(library, build, places) for library, build in wanted]
    problems = [each for each in attempts if isinstance(each, str)]
    return [each for each in attempts if isinstance(each, nn.Module)], problems


def tied_names(model: nn.Module) -> set[str]:
    """Return the names of the tensors of a model that have another name, too."""
    names: dict[int, list[str]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        names.setdefault(id(tensor), []).append(name)
    return {name for each in names.values() if len(each) > 1 for name in each}


def _largest(value: Any, parts: Sequence[str], is_wanted: bool = False) -> int:
    """Return the largest whole number of a configuration under keys that hold one of some parts."""
    if isinstance(value, dict):
        found = (_largest(each, parts, any(part in str(key).lower() for part in parts)) for key, each in value.items())
        return max(found, default=0)
    if isinstance(value, list | tuple):
        return max((_largest(each, parts, is_wanted) for each in value), default=0)
    return value if is_wanted and type(value) is int else 0


def _tried(library: str, build: Callable[[str], nn.Module], places: Sequence[str]) -> nn.Module | str:
    """Return a library's model, or why there is none."""
    problem = ""
    for place in places:  # some constructors compute with numbers, which the meta device has not
        try:
            with _quietly(), torch.device(place), torch.random.fork_rng([]):
                return build(place)
        except ImportError as error:
            return f"{library} cannot be imported ({error}); pip install 'lwptv-lightning[clip]' installs it"
        except Exception as error:  # a configuration may say anything
            problem = f"{library} builds no model of it ({type(error).__name__}: {shown(str(error))})"
    return problem


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep quiet what libraries say of models that are never run."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _of_transformers(folder: Path, plain: dict[str, Any]) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    kind = getattr(transformers, plain["architectures"][0])
    if not issubclass(kind, transformers.PreTrainedModel):  # which names no model
        raise TypeError(kind)
    model: nn.Module = kind(config)
    return model


def _of_timm(folder: Path) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=False)
    return model


def _of_open_clip(folder: Path, device: str) -> nn.Module:
    import open_clip

    options: dict[str, Any] = {"load_weights": False, "pretrained_text": False, "device": device}
    model: nn.Module = open_clip.create_model(f"local-dir:{folder}", **options)
    return model

"""Train the zoo from scratch: one base, five experts, and the heads they share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save
from torch import nn

from lwptv_lightning.files import Stage, write_whole
from lwptv_lightning.registry import Advance, printable, work
from lwptv_lightning.report import progress as show
from lwptv_lightning.zoo.digits import ASSETS, DIGITS_FILE, write_digits
from lwptv_lightning.zoo.domains import ID_SETS
from lwptv_lightning.zoo.files import BASE_FILE, HEADS_FILE, base_path, expert_file, heads
from lwptv_lightning.zoo.glyphs import ALPHABETS
from lwptv_lightning.zoo.model import PrototypeHead, create_model
from lwptv_lightning.zoo.training import Draw, batches, draw_pretraining, draw_task, fit

README_FILE: Final = "README.md"


def build(
    out: str | os.PathLike[str], *, seed: int = 0, steps: int = 1500, expert_steps: int = 250, progress: bool = True
) -> None:
    """Train the base and the experts and write the files that the package ships.

    The base and the prototypes of all classes are trained together on the broad problem. Then both are rounded to
    float16, and every expert starts from that base and is tuned as a whole under the frozen prototypes of its own
    classes. Takes five to ten minutes on two cores with the default arguments, which made the packaged files.

    Args:
        out: Folder to write; it must not exist or be empty. It appears complete or not at all.
        seed: Non-negative; for the initial weights and the training samples.
        steps: Updates of the base.
        expert_steps: Updates of each expert.
        progress: Show a progress bar, on a terminal.

    Raises:
        FileExistsError: If ``out`` holds something already.
        ValueError: If a number of steps is below 1 or the seed is negative.
        ImportError: If the digits are not in the package and scikit-learn is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     build(Path(folder, "zoo"), steps=1, expert_steps=1, progress=False)
        ...     base_path(Path(folder, "zoo")).name
        'base.safetensors'
    """
    out = Path(out)
    for name, value, least in (("seed", seed, 0), ("steps", steps, 1), ("expert_steps", expert_steps, 1)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out: expected a new or empty folder, got {printable(out)}.")
    total = steps + expert_steps * len(ID_SETS)
    with Stage(out) as stage:
        root = stage.folder / "zoo"
        root.mkdir()
        # Initialisation draws from the global generator; the caller's state is given back.
        shown = show if progress else work
        with torch.random.fork_rng(devices=[]), shown("Training the zoo", total) as advance:
            train_base(root, seed=seed, steps=steps, on_step=_reporter(advance, "base"))
            for task in ID_SETS:
                data = partial(draw_task, task, seed=seed)
                head, on_step = heads(root)[task], _reporter(advance, task)
                train_expert(root / expert_file(task), base_path(root), head, data, steps=expert_steps, on_step=on_step)
        _add_the_rest(root)
        if out.exists():
            out.rmdir()  # empty; some systems do not rename onto a folder
        root.rename(out)


def train_base(
    root: Path,
    *,
    seed: int,
    steps: int,
    on_step: Callable[[float], None] = lambda loss: None,
    model: Callable[[], nn.Module] = create_model,
    learning_rate: float = 2.5e-3,
) -> None:
    """Train a base and the prototypes of all classes together on the broad problem, and write both.

    Args:
        root: An existing folder. Of the two files each is whole or absent, and that of the base is the last.
        seed: Non-negative; for the initial weights, which the global generator draws, and the training samples.
        steps: Number of updates.
        on_step: Called with the loss after every update.
        model: Makes the network, from images ``(B, 1, 32, 32)`` to features ``(B, D)``.
        learning_rate: At the top of the schedule.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     train_base(Path(folder), seed=0, steps=1)
        ...     heads(folder)["digits"](torch.ones(1, 192)).shape
        torch.Size([1, 10])
    """
    torch.manual_seed(seed)
    network = model()
    classes = sum(map(len, ALPHABETS.values()))
    width = network(torch.zeros(1, 1, 32, 32)).shape[1]
    head = PrototypeHead(torch.randn(classes, width) / width**0.5, torch.tensor(16.0))
    data = batches(partial(draw_pretraining, seed=seed), batch_size=128, steps=steps)
    fit(network, head, data, steps=steps, learning_rate=learning_rate, on_step=on_step)
    _save(head, root / HEADS_FILE)
    _save(network, root / BASE_FILE)


def train_expert(
    path: Path,
    base: Path,
    head: nn.Module,
    draw_sample: Draw,
    *,
    steps: int,
    on_step: Callable[[float], None] = lambda loss: None,
    model: Callable[[], nn.Module] = create_model,
    learning_rate: float = 2e-3,
) -> None:
    """Tune a base as a whole under a frozen head, and write the expert, whole or not at all.

    Args:
        path: Where to write it.
        base: The file of the base's weights.
        head: From features ``(B, D)`` to logits ``(B, C)``.
        draw_sample: Renders the training sample at an index.
        steps: Number of updates.
        on_step: Called with the loss after every update.
        model: Makes the network.
        learning_rate: At the top of the schedule.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "expert.safetensors")
        ...     head, data = heads()["lower_rotated"], partial(draw_task, "lower_rotated", seed=0)
        ...     train_expert(path, base_path(), head, data, steps=1)
        ...     load_file(path).keys() == load_file(base_path()).keys()
        True
    """
    network = model()
    network.load_state_dict(load_file(base))  # copied into float32, but the values are the rounded ones
    data = batches(draw_sample, batch_size=64, steps=steps)
    fit(network, head, data, steps=steps, learning_rate=learning_rate, on_step=on_step)
    _save(network, path)


def _add_the_rest(root: Path) -> None:
    """Add what is not trained: the handwriting and the description of the files."""
    if (ASSETS / DIGITS_FILE).is_file():
        shutil.copyfile(ASSETS / DIGITS_FILE, root / DIGITS_FILE)
    else:
        write_digits(root / DIGITS_FILE)
    shutil.copyfile(ASSETS / README_FILE, root / README_FILE)


def _save(module: nn.Module, path: Path) -> None:
    # Not `save_file`, which makes the file readable by its owner alone.
    write_whole(path, save({name: tensor.half().contiguous() for name, tensor in module.state_dict().items()}))


def _reporter(advance: Advance, name: str) -> Callable[[float], None]:
    return lambda loss: advance(what=f"Training {name}, loss {loss:.2f}")

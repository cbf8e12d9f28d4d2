"""The zoos of the study: the package's, two more seeds of it, a vision transformer, and a shift of the style alone.

    python examples/study/zoos.py --cache zoos                # trains what is not there yet; a killed run goes on
    python examples/study/zoos.py --cache zoos vit --table    # one zoo, and how good its models are

A seed takes some 12 minutes of one core, the transformer 15, the styles 4.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from lwptv_lightning import MergeModule, TaskVectors
from lwptv_lightning import zoo as package
from lwptv_lightning.files import alone, write_whole
from lwptv_lightning.registry import require_known
from lwptv_lightning.zoo.build import train_base, train_expert
from lwptv_lightning.zoo.files import BASE_FILE, HEADS_FILE, expert_file
from lwptv_lightning.zoo.training import draw_task

sys.path.insert(0, str(Path(__file__).parent))

import style_sets
from small_vit import create_vit
from zoo_table import zoo_table

ZOOS = ("shipped", "seed1", "seed2", "vit", "styles")
TRAINING_FILE = "training.json"


@dataclass(frozen=True)
class StudyZoo:
    """A base, the experts that were tuned from it, and the sets on which they and what is merged of them are measured.

    Attributes:
        loaders: From a split ("train", "validation" or "test") and a number of images to a loader for each set that has
            the split: ``"id/<set>"`` and ``"ood/<group>/<set>"``.
    """

    name: str
    create_model: Callable[[], nn.Module]
    base: Path
    experts: Mapping[str, Path]
    heads: Mapping[str, nn.Module]
    loaders: Callable[[str, int], dict[str, DataLoader]]

    def module(self, recipe: Any = None) -> MergeModule:
        """Return the experts, merged by a recipe, with the heads of all sets."""
        return MergeModule(self.create_model(), TaskVectors.open(self.base, self.experts), recipe, heads=self.heads)


@dataclass(frozen=True)
class Training:
    """How the models of a zoo are trained; one of fewer steps is another zoo."""

    seed: int = 0
    steps: int = 1500
    expert_steps: int = 250
    learning_rate: float = 2.5e-3
    expert_learning_rate: float = 2e-3


TRAININGS = {
    "seed1": Training(seed=1),
    "seed2": Training(seed=2),
    # Attention needs more images than convolutions, and smaller steps.
    "vit": Training(steps=2000, learning_rate=2e-3, expert_learning_rate=1e-3),
    "styles": Training(),
}


def zoo(name: str, cache: Path | str) -> StudyZoo:
    """Return a zoo of the study; what the cache does not hold of it is trained first.

    Args:
        name: One of `ZOOS`.
        cache: The folder of the zoos, ``<cache>/<name>`` each. A model is there as soon as it is trained, whole or not
            at all, and is not trained again. A folder that `lwptv zoo build --seed 1` wrote is a ``seed1`` as well.

    Raises:
        UnknownNameError: There is no such zoo.
        ValueError: What the cache holds of it was trained otherwise.
    """
    require_known("zoo", name, ZOOS)
    if name == "shipped":
        experts = package.expert_paths()
        return StudyZoo(name, package.create_model, package.base_path(), experts, package.heads(), package.loaders)
    folder, training = Path(cache, name), TRAININGS[name]
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):  # another process waits, and finds what this one trained
        _require_same(training, folder)
        if not all((folder / file).is_file() for file in (HEADS_FILE, BASE_FILE)):
            _make_base(name, training, folder)
        built = _described(name, folder)
        for task, path in built.experts.items():
            if not path.is_file():
                _train_expert(built, task, training)
    return built


def _described(name: str, folder: Path) -> StudyZoo:
    """What will be in a folder that has its base."""
    model = create_vit if name == "vit" else package.create_model
    is_styles = name == "styles"
    tasks, heads = (style_sets.TASKS, style_sets.heads) if is_styles else (package.ID_SETS, package.heads)
    experts = {task: folder / expert_file(task) for task in tasks}
    loaders = style_sets.loaders if is_styles else package.loaders
    return StudyZoo(name, model, folder / BASE_FILE, experts, heads(folder), loaders)


def _make_base(name: str, training: Training, folder: Path) -> None:
    """Train a base with its heads; that of the styles is the package's, which knows their classes."""
    if name == "styles":
        for file in (HEADS_FILE, BASE_FILE):
            write_whole(folder / file, package.base_path().with_name(file).read_bytes())
        return
    how = {"seed": training.seed, "steps": training.steps, "learning_rate": training.learning_rate}
    with _told(f"{name}: base"), torch.random.fork_rng(devices=[]):
        train_base(folder, **how, model=create_vit if name == "vit" else package.create_model)


def _train_expert(built: StudyZoo, task: str, training: Training) -> None:
    if built.name == "styles":
        draw = partial(style_sets.draw, task, "train", seed=training.seed)
    else:
        draw = partial(draw_task, task, seed=training.seed)
    how = {"steps": training.expert_steps, "learning_rate": training.expert_learning_rate}
    with _told(f"{built.name}: {task}"):
        train_expert(built.experts[task], built.base, built.heads[task], draw, **how, model=built.create_model)


def _require_same(training: Training, folder: Path) -> None:
    """Write down how the models of a folder are trained; raise where those that are there were trained otherwise."""
    path, wanted = folder / TRAINING_FILE, json.dumps(asdict(training), indent=2) + "\n"
    if not path.exists() and not (folder / BASE_FILE).exists():  # what `lwptv zoo build` wrote does not say it
        write_whole(path, wanted)
    found = path.read_text() if path.exists() else wanted
    if found != wanted:
        there, expected = (" ".join(text.split()) for text in (found, wanted))
        raise ValueError(f"cache: {path} tells of another training, {there}, expected {expected}; give another folder.")


@contextmanager
def _told(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"{what}, {time.monotonic() - started:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(ZOOS)}; all by default")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the zoos")
    parser.add_argument("--table", action="store_true", help="measure base, experts and task arithmetic")
    parser.add_argument("--size", type=int, default=150, help="images in each set of the table")
    options = parser.parse_args(arguments)
    names = options.names or ZOOS
    for name in names:
        require_known("zoo", name, ZOOS)
    for name in names:
        built = zoo(name, options.cache)
        if options.table:
            print(f"\n{name}, accuracy in %\n\n{zoo_table(built.module(), built.loaders('test', options.size))}\n")


if __name__ == "__main__":
    main()

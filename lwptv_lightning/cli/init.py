"""``lwptv init``: a configuration from folders of checkpoints and images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lwptv_lightning.cli.ending import WrongArgumentsError
from lwptv_lightning.cli.results import Result
from lwptv_lightning.registry import ConfigurationError, printable, printable_name

if TYPE_CHECKING:
    from lwptv_lightning.cli.found_architecture import FoundModel
    from lwptv_lightning.cli.found_models import FoundModels

Item = TypeVar("Item")
EXAMPLE = "lwptv init own --out own.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the checkpoints are, and images below it")
    parser.add_argument("more", type=Path, nargs="*", metavar="FOLDER", help="further folders of images")
    parser.add_argument("--out", type=Path, default=Path("suite.yaml"), help="the file to write (default: %(default)s)")
    parser.add_argument("--base", metavar="FILE", help="which checkpoint the others were fine-tuned from")
    parser.add_argument("--model", metavar="NAME", help="the timm model that they are of")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")


def run(options: argparse.Namespace) -> Result:
    """Write a configuration from a folder of checkpoints and images."""
    from lwptv_lightning.checkpoints import require_writable
    from lwptv_lightning.files import write_whole

    for folder in (options.folder, *options.more):
        if not folder.is_dir():
            raise WrongArgumentsError(f"there is no folder {str(folder)!r}.")
    require_writable(options.out, overwrite=options.overwrite)
    try:
        text, said = written(options)
    except ConfigurationError as error:
        raise WrongArgumentsError(str(error)) from error
    write_whole(options.out, text)
    return Result({"out": options.out, "found": said}, list(map(printable, said)))


def written(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the configuration's text, and what was found in a few lines."""
    from lwptv_lightning.cli.found_architecture import find_model
    from lwptv_lightning.cli.found_data import arrange
    from lwptv_lightning.cli.found_models import find_models
    from lwptv_lightning.cli.found_sets import find_sets
    from lwptv_lightning.cli.suite_text import said_of, suite_text

    models = find_models(options.folder, options.base, _tracked("Opening checkpoints"))
    model = find_model(models.base, models.opened[models.base], options.model, _tracked("Looking for the architecture"))
    sets = [each for folder in _apart((options.folder, *options.more)) for each in find_sets(folder)]
    own = model.logits(models.opened[models.base])
    logits = {task: model.logits(models.opened[path]) or own for task, path in models.tasks.items()}
    merged = all(number == own for number in logits.values())
    data = arrange(sets, logits, models.base, own, shared=False)
    lists = {each.classes for each in data.id.values()}
    if merged and len(lists) <= 1:
        data = arrange(sets, logits, models.base, own, shared=True)
    extra = _own_heads(models, model) if merged and len(lists) > 1 else {}
    _require_fit(models, model, extra)
    where = options.out.resolve().parent
    return suite_text(models, model, data, extra, where), said_of(models, model, data, options.out)


def _tracked(what: str) -> Callable[[Iterable[Item], int], Iterator[Item]]:
    from lwptv_lightning.report import progress

    def track(items: Iterable[Item], count: int) -> Iterator[Item]:
        with progress(what, total=count) as advance:
            for item in items:
                yield item
                advance()

    return track


def _apart(folders: Iterable[Path]) -> list[Path]:
    """Return folders without those that lie in others."""
    found: list[Path] = []
    for folder in folders:
        if not any(folder.resolve().is_relative_to(other.resolve()) for other in found):
            found.append(folder)
    return found


def _own_heads(models: FoundModels, model: FoundModel) -> dict[str, Any]:
    """Return what gives each task its own classifier where all are of one shape, and would be merged."""
    return {"heads": dict(models.tasks), "exclude": [f"{path}.*" for path in model.classifier]}


def _require_fit(models: FoundModels, model: FoundModel, extra: Mapping[str, Any]) -> None:
    """Raise a `ConfigurationError` where the checkpoints are not of the model."""
    import torch

    from lwptv_lightning.cli.made import make_model
    from lwptv_lightning.merging import require_fit
    from lwptv_lightning.task_vectors import TaskVectors

    try:
        with torch.device("meta" if isinstance(model.model, str) else "cpu"):
            made = make_model(model.model, model.arguments)
        vectors = TaskVectors.open(models.base, models.tasks, exclude=extra.get("exclude", ()), model=made)
        require_fit(made, vectors)
    except ConfigurationError as error:
        raise ConfigurationError("--model", f"{error} ({model.why}).") from error
    except ValueError as error:
        named = model.model if isinstance(model.model, str) else model.model["class_path"]
        raise ConfigurationError("--model", f"{printable_name(named)} ({model.why}) does not fit: {error}") from error

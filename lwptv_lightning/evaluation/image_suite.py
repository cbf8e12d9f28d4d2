"""`image_suite`: named sets of images, prepared as a model takes them, with the labels of the heads that judge them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils.data import Dataset, IterableDataset

from lwptv_lightning.evaluation.class_numbers import numbered
from lwptv_lightning.evaluation.image_transform import ImageTransform, image_transform
from lwptv_lightning.evaluation.loaders import EvaluationSuite
from lwptv_lightning.evaluation.module import MergeModule
from lwptv_lightning.evaluation.named_sets import NamedSet, is_renumbered, named_set
from lwptv_lightning.functional import plain_module
from lwptv_lightning.registry import ConfigurationError, LoaderName, nearest, printable_name, shown
from lwptv_lightning.task_vectors import output_paths


def image_suite(
    module: MergeModule,
    id: Mapping[str, Any],
    ood: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
    *,
    batch_size: int = 128,
    num_workers: int = 0,
    **preparation: Any,
) -> EvaluationSuite:
    """Return sets of images as a configuration's ``data`` names them.

    Images are prepared by the model's own data config. Classes of an OOD or validation set that a task's head judges
    are numbered by the task's ID set, so that a folder of some of the classes has their labels.

    Args:
        module: The module that will be evaluated on them.
        id: Task name to a data set: a folder of images, the name of a library's, or a mapping; see `named_set`.
        ood: Name, or ``"<group>/<name>"``, to a data set.
        validation: Task name to other samples of its domain, for choices.
        batch_size: Images in a batch.
        num_workers: Processes that load images, for each set.
        preparation: What is said instead of the model's data config: ``image_size``, ``mean``, ``std``, ``crop_pct``,
            ``interpolation``, ``crop_mode``.

    Raises:
        ConfigurationError: A set cannot be opened, has a class that its head does not know, or too many.
    """
    transform = image_transform(module.model, **preparation)
    given = {"id": id, "ood": ood or {}, "validation": validation or {}}
    opened = {
        group: {
            str(name): named_set(f"data.{group}.{name}", value) for name, value in sets.items() if value is not None
        }
        for group, sets in given.items()
    }
    _require_names(opened)
    notes = [transform.note]
    aliases, others = module.heads.aliases, _others(module)
    sets: dict[str, dict[str, Dataset[Any]]] = {}
    for group, named in opened.items():
        sets[group] = {}
        for name, data in named.items():
            key = f"data.{group}.{name}"
            known, note = numbered(key, name, data, opened["id"], aliases, others) if group != "id" else (data, "")
            notes += [data.note, note, _require_logits(key, group, name, data, module)]
            sets[group][name] = _prepared(known.data, transform)
    try:
        suite = EvaluationSuite(
            sets["id"], sets["ood"], validation=sets["validation"], batch_size=batch_size, num_workers=num_workers
        )
    except (TypeError, ValueError) as error:
        raise ConfigurationError("data", str(error)) from error
    suite.notes = tuple(note for note in notes if note)
    return suite


def _require_names(opened: Mapping[str, Mapping[str, NamedSet]]) -> None:
    for group, named in opened.items():
        for name in named:
            try:
                LoaderName.parse(f"{'ood' if group == 'ood' else 'id'}/{name}")
            except ValueError as error:
                raise ConfigurationError(f"data.{group}.{name}", str(error)) from error
    known = [*opened["id"], *(LoaderName.of_figure(f"id/{name}").name for name in opened["id"])]
    for name in opened["validation"]:
        if LoaderName.of_figure(f"id/{name}").keys[-1] not in known:
            raise ConfigurationError(
                f"data.validation.{name}", f"there is no ID set of this name.{nearest(name, opened['id'])}"
            )


def _others(module: MergeModule) -> frozenset[str]:
    """Return the heads that are none of a task's own classifier."""
    own = {*module.heads.own_tasks, *module.heads.aliases}
    return frozenset(name for name in module.heads if name not in own and name not in module.tasks)


def _require_logits(key: str, group: str, name: str, data: NamedSet, module: MergeModule) -> str:
    """Refuse a set of more classes than its head has logits, and say where an ID set has fewer."""
    head = module.heads.of_loader(f"{'id' if group == 'validation' else group}/{name}")
    if head is not None and head not in module.heads:
        short, known = LoaderName.of_figure(f"ood/{name}").keys[-1], ", ".join(map(printable_name, module.heads))
        raise ConfigurationError(
            key,
            f"no head judges this set; say heads: {{{short}: <task>}}, one of {known}.{nearest(short, module.heads)}",
        )
    logits = _logits(module, head)
    if data.classes is None or logits is None:
        return ""
    whose = f"the head of {head!r}" if head is not None else "the model's classifier"
    if len(data.classes) > logits:
        raise ConfigurationError(
            key, f"{len(data.classes)} classes, and {whose} has {logits} logits. Give the set a head of its classes."
        )
    if len(data.classes) < logits and group == "id" and not data.is_numbered and data.is_folder:
        return (
            f"{key}: {len(data.classes)} classes, and {whose} has {logits} logits: where a class has no folder, name "
            "all of them in their order: {dataset: <folder>, classes: [...]}."
        )
    return ""


def _logits(module: MergeModule, head: str | None) -> int | None:
    maker: nn.Module = module.heads[head] if head is not None else _classifier(module)
    found = getattr(maker, "out_features", getattr(maker, "out_channels", None))
    return found if isinstance(found, int) else None


def _classifier(module: MergeModule) -> nn.Module:
    model = plain_module(module.model)
    paths = output_paths(model)
    return model.get_submodule(paths[0]) if len(paths) == 1 else model


class _Prepared(Dataset[Any]):
    def __init__(self, data: Any, transform: ImageTransform) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return _with_tensor(self.data[index], self.transform)


class _PreparedStream(IterableDataset[Any]):
    def __init__(self, data: Any, transform: ImageTransform) -> None:
        self.data, self.transform = data, transform

    def __iter__(self) -> Any:
        return (_with_tensor(sample, self.transform) for sample in self.data)


def given_set(data: Any) -> Any:
    """Return the data set of which a suite of images made another one of the same samples."""
    while isinstance(data, _Prepared | _PreparedStream) or is_renumbered(data):
        data = data.data
    return data


def _prepared(data: Any, transform: ImageTransform) -> Dataset[Any]:
    return (_PreparedStream if isinstance(data, IterableDataset) else _Prepared)(data, transform)


def _with_tensor(sample: Any, transform: ImageTransform) -> Any:
    if isinstance(sample, tuple | list) and sample:
        return (transform(sample[0]), *sample[1:])
    if isinstance(sample, Mapping):
        return {name: transform(value) for name, value in sample.items()}
    raise TypeError(f"a data set gives {shown(sample)}, expected an image and its label.")

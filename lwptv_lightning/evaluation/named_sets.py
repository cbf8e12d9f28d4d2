"""Data sets by what a configuration says of them: a folder of images, a library's name, or a class of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from lwptv_lightning.evaluation.class_paths import is_class_path, made_of
from lwptv_lightning.evaluation.image_folder import ClassFolders, is_left_alone
from lwptv_lightning.registry import ConfigurationError, nearest, shown

TORCHVISION = "torchvision/"
HUGGING_FACE = "hf/"
TIMM = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")
"""What names of `timm.data.create_dataset` begin with."""
LIBRARIES = (TORCHVISION, HUGGING_FACE, *TIMM)
_DOWNLOADED = "data"
"""The folder of a library's data sets where nothing else is said."""
_MEANT = (
    "a folder of images, 'torchvision/<name>', 'torch/<name>', 'hf/<owner>/<name>', or a mapping with 'dataset' or "
)
_MEANT += "'class_path'"


@dataclass(frozen=True)
class NamedSet:
    """A data set, and what is known of its classes.

    Attributes:
        data: Gives images, or tensors, and labels.
        classes: Their names by label; None where they are not known.
        is_folder: Whether they are the names of folders.
        is_numbered: Whether its labels are those of the head already, as ``classes`` of the configuration say.
        note: What is to be said of it, such as files that are left out.
    """

    data: Dataset[Any]
    classes: tuple[str, ...] | None = None
    is_folder: bool = False
    is_numbered: bool = False
    note: str = ""


def is_library_name(value: object) -> bool:
    """Tell whether a text is a library's name of a data set, and not a path."""
    return isinstance(value, str) and value.lower().startswith(LIBRARIES)


def named_set(key: str, value: Any) -> NamedSet:
    """Open the data set that a configuration means.

    Args:
        key: Where it stands, for messages.
        value: The path of a folder with one sub-folder a class; ``"torchvision/SVHN"``; a name of
            `timm.data.create_dataset`, such as ``"torch/cifar10"``; ``"hf/owner/name"`` of Hugging Face's datasets; a
            mapping with one of these as ``dataset`` and ``root``, ``split``, ``download``, ``classes``, ...; one with
            ``class_path``; or a data set.

    Raises:
        ConfigurationError: It is none of these, or cannot be opened.
    """
    if isinstance(value, Dataset):
        return _with_classes(value)
    if isinstance(value, str | Path):
        value = {"dataset": str(value)}
    if not isinstance(value, Mapping):
        raise ConfigurationError(key, f"expected {_MEANT}, not {shown(value)}.")
    if is_class_path(value):
        return _with_classes(made_of(key, value, Dataset, "a data set of torch"))
    options = dict(value)
    if not isinstance(name := options.pop("dataset", options.get("root")), str):
        group = key.rpartition(".")[2]
        hint = (
            f" Sets of a group are named '{group}/<name>'."
            if all(isinstance(each, str) for each in options.values())
            else ""
        )
        raise ConfigurationError(key, f"expected {_MEANT}; there is no 'dataset'.{hint}")
    if not is_library_name(name):
        return _folder(key, name, options)
    kind = name.lower().partition("/")[0] + "/"
    opener = {TORCHVISION: _torchvision, HUGGING_FACE: _hugging_face}.get(kind, _timm)
    return opener(key, name, options)


def _with_classes(data: Dataset[Any]) -> NamedSet:
    classes = getattr(data, "classes", None)
    is_known = isinstance(classes, list | tuple) and all(isinstance(each, str) for each in classes)
    return NamedSet(data, tuple(classes) if is_known and classes else None)


def _folder(key: str, path: str, options: dict[str, Any]) -> NamedSet:
    if unknown := next((name for name in options if name not in ("root", "classes")), None):
        hint = nearest(unknown, ("root", "classes", "dataset"))
        raise ConfigurationError(f"{key}.{unknown}", f"unknown key of a folder of images.{hint}")
    folder = Path(path).expanduser()
    require_folder(key, folder)
    found = sorted(each.name for each in folder.iterdir() if each.is_dir() and not is_left_alone(each.name))
    if not found:
        raise ConfigurationError(
            key, f"{shown(path)} has no sub-folders, expected one for each class, with its images."
        )
    classes = _given_classes(key, options.get("classes"))
    if classes and (other := [name for name in found if name not in classes]):
        hint = nearest(other[0], classes)
        raise ConfigurationError(key, f"{shown(path)} has a folder {other[0]!r}, which is none of 'classes'.{hint}")
    try:
        data = ClassFolders(folder, key, allow_empty=bool(classes))
    except (FileNotFoundError, OSError) as error:
        raise ConfigurationError(key, f"{shown(path)}: {str(error).splitlines()[0].rstrip('.')}.") from error
    note = _left_out(key, data.left_out)
    if classes:
        numbers = [classes.index(name) for name in data.classes]
        return NamedSet(_Renumbered(data, numbers), classes, is_folder=True, is_numbered=True, note=note)
    return NamedSet(data, tuple(data.classes), is_folder=True, note=note)


def _left_out(key: str, files: list[str]) -> str:
    """Return in words which files of a folder are no images; nothing where there are none."""
    if not files:
        return ""
    count = "1 file is" if len(files) == 1 else f"{len(files)} files are"
    return f"{key}: {count} left out, no images by name, such as {files[0]!r}."


class _Renumbered(Dataset[Any]):
    """A data set whose labels are others, by their place."""

    def __init__(self, data: Any, numbers: list[int]) -> None:
        self.data, self.numbers = data, numbers

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.data[index]
        return image, self.numbers[int(label)]


def renumbered(data: Any, numbers: list[int]) -> Dataset[Any]:
    """Return a data set whose label i is the i-th of some numbers."""
    return _Renumbered(data, numbers)


def is_renumbered(data: Any) -> bool:
    """Tell whether a data set is another one with other labels."""
    return isinstance(data, _Renumbered)


def require_folder(key: str, folder: Path) -> None:
    """Raise a `ConfigurationError` with what is near unless a folder is there."""
    if folder.is_dir():
        return
    if folder.exists():
        raise ConfigurationError(key, f"{shown(str(folder))} is no folder, but a file.")
    above = folder
    while not above.parent.is_dir() and above.parent != above:
        above = above.parent
    beside = sorted(each.name for each in above.parent.iterdir()) if above.parent.is_dir() else []
    near = nearest(above.name, beside)
    where = f" {str(above.parent)!r} has no {above.name!r}." if above != folder else ""
    raise ConfigurationError(key, f"{shown(str(folder))}: there is no such folder.{where}{near}")


def _given_classes(key: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    names = [str(each) for each in value] if isinstance(value, list | tuple) else []
    if not names or len({*names}) != len(names):
        raise ConfigurationError(
            f"{key}.classes", f"expected the names of the head's classes in its order, each once, not {shown(value)}."
        )
    return tuple(names)


def _torchvision(key: str, name: str, options: dict[str, Any]) -> NamedSet:
    from torchvision import datasets

    wanted = name.partition("/")[2]
    known = {each.lower(): each for each in datasets.__all__}
    if wanted.lower() not in known:
        raise ConfigurationError(key, f"torchvision has no data set {wanted!r}.{nearest(wanted, datasets.__all__)}")
    maker = getattr(datasets, known[wanted.lower()])
    parameters = inspect.signature(maker).parameters
    split = options.pop("split", "test")
    given = {"root": options.pop("root", _DOWNLOADED), **options}
    if "split" in parameters:
        given["split"] = split
    elif "train" in parameters and "train" not in given:
        given["train"] = split == "train"
    elif "image_set" in parameters and "image_set" not in given:
        given["image_set"] = split
    if "root" not in parameters:
        del given["root"]
    if unknown := next((each for each in given if each not in parameters), None):
        raise ConfigurationError(
            f"{key}.{unknown}", f"{maker.__name__} takes no such argument.{nearest(unknown, parameters)}"
        )
    hint = "" if given.get("download") or "download" not in parameters else " 'download: true' fetches it."
    return _with_classes(_opened(key, name, maker, given, hint))


def _timm(key: str, name: str, options: dict[str, Any]) -> NamedSet:
    from timm.data import create_dataset

    if name.startswith(("hfds/", "hfids/")):
        _require_datasets(key, name)
    given = {"root": _DOWNLOADED, "split": "test", **options}
    hint = "" if given.get("download") else " 'download: true' fetches it, where timm can."
    data = _opened(key, name, lambda **more: create_dataset(name, **more), given, hint)
    names = getattr(getattr(data, "reader", None), "class_to_idx", None)
    if isinstance(names, Mapping) and names:
        return NamedSet(data, tuple(str(each) for each in sorted(names, key=names.__getitem__)))
    return _with_classes(data)


def _hugging_face(key: str, name: str, options: dict[str, Any]) -> NamedSet:
    datasets = _require_datasets(key, name)
    columns = {each: options.pop(each, None) for each in ("image", "label")}
    place, split = name.partition("/")[2], options.pop("split", "test")
    root = options.pop("root", None)
    if Path(place).expanduser().is_dir():
        data = _opened(key, name, lambda: datasets.load_from_disk(str(Path(place).expanduser())), {}, "")
        if isinstance(data, Mapping):
            if split not in data:
                raise ConfigurationError(
                    f"{key}.split", f"{name} has no {split!r}.{nearest(split, data)} It has {', '.join(data)}."
                )
            data = data[split]
    else:
        given = {"split": split, **({} if root is None else {"cache_dir": root}), **options}
        data = _opened(key, name, lambda **more: datasets.load_dataset(place, **more), given, "")
    return _columns(key, name, data, datasets, columns)


def _columns(key: str, name: str, data: Any, datasets: Any, columns: dict[str, Any]) -> NamedSet:
    kinds = {"image": datasets.Image, "label": datasets.ClassLabel}
    for part, kind in kinds.items():
        of_kind = [each for each, feature in data.features.items() if isinstance(feature, kind)]
        named = columns[part] if columns[part] is not None else part if part in data.features else None
        columns[part] = named or (of_kind[0] if len(of_kind) == 1 else None)
        if columns[part] not in data.features:
            hint = nearest(str(columns[part]), data.features) if columns[part] else ""
            raise ConfigurationError(
                f"{key}.{part}",
                f"which column of {name} it is cannot be known: say one of {', '.join(data.features)}.{hint}",
            )
    names = getattr(data.features[columns["label"]], "names", None)
    return NamedSet(_Columns(data, columns["image"], columns["label"]), tuple(names) if names else None)


class _Columns(Dataset[Any]):
    """Two columns of a Hugging Face data set."""

    def __init__(self, data: Any, image: str, label: str) -> None:
        self.data, self.image, self.label = data, image, label

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.data[index]
        return row[self.image], int(row[self.label])


def _require_datasets(key: str, name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigurationError(
            key, f"{name} needs Hugging Face's 'datasets', which is not installed: pip install 'lwptv-lightning[data]'."
        ) from error
    return datasets


def _opened(key: str, name: str, maker: Any, given: dict[str, Any], hint: str) -> Any:
    try:
        return maker(**given)
    except (Exception, AssertionError) as error:  # each library has errors of its own for what is not there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigurationError(key, f"{name} cannot be opened: {reason}.{hint}") from error

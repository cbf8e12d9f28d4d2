"""`Output`: where and in which form a merged model is written, which is decided and checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from os import PathLike, fspath, lstat
from pathlib import Path

from lwptv_lightning.checkpoints import (
    Checkpoint,
    Provenance,
    SafetensorsWriter,
    TensorHeader,
    require_place,
    require_safetensors_path,
    require_storable,
)
from lwptv_lightning.files import require_free_folder, whole_folder
from lwptv_lightning.libraries import (
    DISTRIBUTED,
    PLAIN,
    ModelFolder,
    belongs_to_a_model,
    plan_folder,
    require_format,
    write_distributed,
)
from lwptv_lightning.registry import parse_bytes, printable, require_kind, shown
from lwptv_lightning.task_vectors import TaskVectors

_SUFFIX = ".safetensors"
_OF_FILES = (
    ".bin",
    ".ckpt",
    ".gguf",
    ".h5",
    ".json",
    ".npz",
    ".onnx",
    ".pickle",
    ".pkl",
    ".pt",
    ".pth",
    ".pyth",
    ".tar",
)
"""Endings of files of other formats, which nobody gives to a folder."""
_USUAL_SHARD = "5GB"

Beside = Callable[[Path, Provenance], None]
"""Writes more files into a model's folder before it appears, of a model that says this of itself."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """A place for a merged model, and the form in which it goes there; see `plan_output`.

    Attributes:
        path: The file or the folder.
        headers: The tensors that are written.
        folder: What stands in the folder; None for a file.
        shard_size: Bytes of a shard; None for one file.
        overwrite: Whether to replace a model.
        left_out: Tensors of the base that are not written, which the model says of itself.
    """

    path: Path
    headers: Mapping[str, TensorHeader]
    folder: ModelFolder | None
    shard_size: int | None
    overwrite: bool
    left_out: tuple[str, ...] = ()

    def described(self, made: Provenance) -> Provenance:
        """Return what a model says of itself, with what it is without and what is to be known of its folder."""
        notes = () if self.folder is None else self.folder.notes
        return replace(made, left_out=list(self.left_out), notes=list(notes))

    @contextmanager
    def writing(self, made: Provenance, beside: Iterable[Beside] = ()) -> Iterator[SafetensorsWriter]:
        """Yield what takes the tensors; all of the model appears when the block is left without an error.

        Args:
            made: What the model says of itself, until the writer is told more.
            beside: What else is to stand in the folder.
        """
        metadata = self.described(made).to_metadata()
        if self.folder is None:
            with SafetensorsWriter(
                self.path, self.headers, metadata, self.shard_size, overwrite=self.overwrite
            ) as writer:
                yield writer
            return
        with whole_folder(self.path, overwrite=self.overwrite, belongs=belongs_to_a_model) as home:
            is_distributed = self.folder.library == DISTRIBUTED
            weights = (home.parent if is_distributed else home) / self.folder.weights
            with SafetensorsWriter(weights, self.headers, metadata, self.shard_size) as writer:
                yield writer
            if is_distributed:
                write_distributed(weights, home, writer.metadata)
            for name, content in self.folder.files.items():
                (home / name).write_bytes(content)
            for write in beside:
                write(home, Provenance.from_metadata(writer.metadata))

    def final(self, writer: SafetensorsWriter) -> Path:
        """Return what to open once all is written."""
        return writer.final if self.folder is None else self.path


def plan_output(
    path: str | Path,
    headers: Mapping[str, TensorHeader],
    origin: Checkpoint,
    *,
    format: str | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = True,
    left_out: Iterable[str] = (),
    inputs: Iterable[Checkpoint] = (),
) -> Output:
    """Decide how a merged model is written, and refuse what cannot be, before any work.

    Args:
        path: A ``.safetensors`` file, or a folder.
        headers: All tensors of the model.
        origin: The base.
        format: The kind of folder; by default what the base came as.
        max_shard_size: Bytes, or text such as ``"5GB"``, which is the default where shards can be read.
        overwrite: Whether to replace a model that is there.
        left_out: Those of the tensors that are not written.
        inputs: What is read meanwhile, which must not be lost.

    Raises:
        ValueError: There is no such format, the path's ending is another's, or a library reads no shards.
        FolderError: The library would not load the model.
        FileExistsError: Something stands there that is not to be replaced.
        OSError: Nothing can be written there.
    """
    _require_form(path, format)
    path, left_out = Path(path), tuple(left_out)
    size = parse_bytes("max_shard_size", _USUAL_SHARD if max_shard_size is None else max_shard_size)
    headers = {name: header for name, header in headers.items() if name not in left_out}
    require_storable(headers)
    require_output(path, format, overwrite=overwrite)
    folder = None
    if path.suffix != _SUFFIX:
        folder = plan_folder(origin, headers, format, left_out=left_out)
        _require_none_lost(path, inputs)
    shard_size: int | None = size
    if folder is not None and not folder.in_shards:
        total = sum(header.nbytes for header in headers.values())
        if max_shard_size is not None and total > size:
            raise ValueError(
                f"max_shard_size: {folder.library} reads a model from one file, here of {total:,} bytes, and no shards."
            )
        shard_size = None
    return Output(
        path=path, headers=headers, folder=folder, shard_size=shard_size, overwrite=overwrite, left_out=left_out
    )


def base_classifier(vectors: TaskVectors) -> tuple[str, ...]:
    """Return the tensors of a base's classifier where the tasks have their own, so that it is no part of a merge."""
    paths = tuple(f"{path}." for path in vectors.classifiers)
    return tuple(name for name in vectors.headers if name.startswith(paths))


def require_output(path: str | Path, format: str | None = None, *, overwrite: bool = True) -> None:
    """Raise where no model can be written to a path, as far as that is told without a model; a folder is made for it.

    Raises:
        ValueError: There is no such format, or the path's ending is another's.
        FileExistsError: Something stands there that is not to be replaced.
        OSError: Nothing can be written there.
    """
    _require_form(path, format)
    path = Path(path)
    if path.suffix == _SUFFIX:
        require_place(path, overwrite=overwrite)
    else:
        require_free_folder(path, overwrite=overwrite, belongs=belongs_to_a_model)


def _require_form(path: str | Path, format: str | None) -> None:
    """Raise unless a path is that of a file of safetensors or of a folder, and the format is of such a one."""
    wanted = "a path, of a folder or of a .safetensors file"
    require_kind("the file to write", path, str | PathLike, wanted)
    if why := _never_made(path):
        raise ValueError(f"the file to write must be {wanted}; by the name {shown(str(path))} none can be made: {why}.")
    require_format(format)
    path = Path(path)
    suffix = path.suffix.lower()
    is_misspelt = bool(get_close_matches(suffix, [_SUFFIX], cutoff=0.75)) and path.suffix != _SUFFIX
    if suffix in _OF_FILES or is_misspelt:
        require_safetensors_path(path)
    if path.suffix == _SUFFIX and format not in (None, PLAIN):
        raise ValueError(f"format={format!r} is a folder's; name one, and not {printable(path)}.")


def _never_made(path: str | PathLike[str]) -> str:
    """Return why no file may have a name: it is empty, too long or holds a zero; empty where one may."""
    try:
        lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return "" if fspath(path) else "it is empty"
    except OSError as error:
        return str(error.strerror)
    except ValueError as error:
        return str(error)
    return ""


def _require_none_lost(path: Path, inputs: Iterable[Checkpoint]) -> None:
    home = path.resolve()
    for checkpoint in inputs:
        for file in checkpoint.inputs:
            if file.path.resolve().is_relative_to(home):
                raise FileExistsError(
                    f"{path} holds {file.path.name}, which is merged, and would lose it; name another."
                )

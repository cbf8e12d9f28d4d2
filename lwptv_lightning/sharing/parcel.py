"""`Parcel`: which files of a folder are uploaded, and which stay at home whatever they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lwptv_lightning.checkpoints import CheckpointError, index_of, open_checkpoint
from lwptv_lightning.files import InputFile, beside
from lwptv_lightning.inspection import Verification, verification_text, verify
from lwptv_lightning.libraries import PROCESSING
from lwptv_lightning.merging import TAGS, card_of
from lwptv_lightning.registry import matches, parse_json, printable, shown

CARD = "README.md"
_ADAPTER = "adapter_config.json"
_ON_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_ALLOWED = re.compile(
    r"(open_clip_|generation_|adapter_)?config\.json|(.+\.)?heads\.safetensors|lwptv_adapter\.json"
    r"|(configuration|modeling|tokenization|processing|image_processing|feature_extraction)_\w+\.py"
    r"|recipe\.json|report\.md|results\.csv|saliency\.png|id_ood\.png|USE_POLICY(\.(md|txt))?"
)
"""Names of what belongs to a model besides weights, card and the files of its processing; no other is uploaded."""
_PICKLED = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]")
"""How archives of torch and pickles begin, which run code in whoever loads them."""


@dataclass(frozen=True)
class Parcel:
    """The files of a merged model that are uploaded.

    Attributes:
        source: The folder or file, by its name.
        files: Name in the repository to the file.
        card: The text of the card, where none stands beside the model.
        left_out: Names of what else lies in the folder.

    Example:
        >>> import tempfile, torch
        >>> from lwptv_lightning import TaskVectors, save_merged
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_merged(vectors, "ties", f"{folder}/merged.safetensors")
        ...     _ = Path(folder, ".env").write_text("HF_TOKEN=secret")
        ...     parcel = Parcel.of(folder)
        >>> parcel.names, parcel.left_out
        (('README.md', 'merged.safetensors'), ('.env',))
    """

    source: str
    files: Mapping[str, Path]
    card: str | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: str | Path) -> Parcel:
        """Check a merged model by its checksums, and choose what is uploaded.

        Args:
            path: Its folder; or its file or the index of its shards, with which nothing goes but its card.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: It is no merged model, it is damaged, or it has no checksum by which to tell.
        """
        path = Path(path).expanduser()
        if (path / ".metadata").is_file():
            raise CheckpointError(
                f"{path}: a folder of torch.distributed.checkpoint holds pickles, which are not uploaded; write the "
                "model as safetensors."
            )
        checked = verify(path)
        _require_merged(path, checked)
        there = path if path.exists() else index_of(path)
        if checked.made.kind == "adapter":
            _require_base_of_all(there)
        folder = there if there.is_dir() else there.parent
        weights = {file.path.name: file.path for file in open_checkpoint(there, prefix="").inputs}
        others: dict[str, Path] = {}
        left_out: list[str] = []
        if there.is_dir():
            for found in sorted(folder.iterdir()):
                if found.name not in weights and found.name != CARD:
                    if _is_allowed(folder, found.name):
                        others[found.name] = found
                    else:
                        left_out.append(found.name)
        card = _own_card(folder, any_card=there.is_dir())
        files = {**({CARD: folder / CARD} if card else {}), **others, **weights}
        made = None if card else card_of(there, name=folder.absolute().name if there.is_dir() else "Merged model")
        return cls(path.name, files, made, tuple(left_out))

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the files have in the repository, the card first."""
        return (*((CARD,) if self.card is not None else ()), *self.files)

    def size_of(self, name: str) -> int:
        """Return the bytes of one of the files."""
        return len((self.card or "").encode()) if name not in self.files else self.files[name].stat().st_size

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Give a folder with these files and no others, as links where the system has such."""
        with TemporaryDirectory(prefix="lwptv-push-") as stage:
            for name, file in self.files.items():
                _link(file.resolve(), Path(stage, name))
            if self.card is not None:
                Path(stage, CARD).write_text(self.card, encoding="utf-8")
            yield Path(stage)


def _require_merged(path: Path, found: Verification) -> None:
    if found.made.kind not in ("merged", "adapter"):
        kinds = {"task_vector": "a task vector", "base": "the base of a task vector"}
        kind = kinds.get(str(found.made.kind))
        was = "what lwptv did not write, or wrote as something else" if kind is None else kind
        raise CheckpointError(f"{path}: expected a merged model, not {was}.")
    if not found.passed:
        problem = verification_text(found).split("\n")[0]
        raise CheckpointError(f"{path}: it is not as it was written, and is not uploaded: {problem}")


def _require_base_of_all(path: Path) -> None:
    """Raise unless an adapter is a folder whose configuration names the base as anybody finds it."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: an adapter needs the adapter_config.json beside it; name the folder.")
    about = parse_json(InputFile.at(path / _ADAPTER, CheckpointError).text(), str(path / _ADAPTER))
    base = about.get("base_model_name_or_path") if isinstance(about, dict) else None
    if isinstance(base, str) and _ON_HUB.fullmatch(base) is None:
        raise CheckpointError(
            f"{path / _ADAPTER}: base_model_name_or_path is {shown(base)}, a path of this machine; write the base's "
            "name on the hub there, such as owner/model."
        )


def _is_allowed(folder: Path, name: str) -> bool:
    """Tell whether a file is one that may be seen by all: by its name, and by not being a pickle or a way elsewhere."""
    if _ALLOWED.fullmatch(name) is None and not matches(name, PROCESSING):
        return False
    try:
        with InputFile.at(beside(folder, name)).open() as file:
            return _PICKLED.match(file.read(4)) is None
    except (OSError, ValueError):
        return False


def _own_card(folder: Path, *, any_card: bool) -> bool:
    """Tell whether a model has its card beside it already; beside a single file, a page may be of something else."""
    try:
        text = InputFile.at(beside(folder, CARD)).text().decode("utf-8")
    except (OSError, ValueError):
        return False
    return any_card or all(tag in text.partition("\n---")[0] for tag in TAGS)


def _link(file: Path, to: Path) -> None:
    try:
        os.symlink(file, to)
    except (OSError, NotImplementedError):  # Windows asks for rights that few have
        os.link(file, to)


def listed(parcel: Parcel) -> str:
    """Return the files and their sizes in lines of text."""
    return "\n".join(f"    {printable(name)}  {_in_units(parcel.size_of(name))}" for name in parcel.names)


def _in_units(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"

"""The folder of a report: its files are made aside and appear whole, and no file that is another's is replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lwptv_lightning.checkpoints import CheckpointError, Provenance, open_checkpoint
from lwptv_lightning.files import Stage, is_there, naming
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import parse_json, printable
from lwptv_lightning.report.html import MARK
from lwptv_lightning.report.markdown import mark_of

REPORT, PAGE, RESULTS, RECIPE = "report.md", "report.html", "results.csv", "recipe.json"
_BEGIN = 1 << 15
"""Bytes of a file that tell what it is."""
_BEGINS = {".png": (b"\x89PNG\r\n\x1a\n",), ".svg": (b"<?xml",), ".csv": (b"model,", b"task,", b"layer,", b"score,")}
"""How files of a report begin, by their suffix."""


class ReportFolder:
    """Writes the files of a report, in place of those that an earlier report of the same title left, and no other's.

    Args:
        folder: Where to write; made where it does not exist.
        title: The first line of ``report.md``, by which a report of its kind is known.
        names: The files of such a report, some of them in folders, such as ``figures/a.png``.
        run: What tells the report's run, which stands in ``report.md``: one of another run is another's.
        overwrite: Whether to replace any files of these names.
        alone: Whether nothing else may stand in the folder either, but hidden files.
        option: How one asks for ``overwrite``, in messages.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        names: Collection[str],
        *,
        run: str | None = None,
        overwrite: bool = False,
        alone: bool = False,
        option: str = "overwrite=True",
    ) -> None:
        self._folder = folder
        self._title = title
        self._names = names
        self._run = run
        self._overwrite = overwrite
        self._alone = alone
        self._option = option

    def require_own(self) -> None:
        """Raise, before any work, where the report would replace another's file, or cannot be written.

        Raises:
            FileExistsError: There is such a file, which is named.
            OSError: Nothing can be written there.
        """
        with Stage(self._folder / REPORT):
            pass
        for inner in self._inner:
            if inner.is_symlink() or (inner.exists() and not inner.is_dir()):
                raise FileExistsError(f"{printable(inner)} is no folder of its own, and a report's figures go there.")
            if inner.is_dir():
                with Stage(inner / REPORT):
                    pass
        if self._overwrite:
            return
        if foreign := self._foreign():
            raise FileExistsError(
                f"{printable(self._folder)} holds {foreign!r}, which no earlier report of this kind wrote; give "
                f"another folder or {self._option}."
            )
        if self._run is not None and is_there(self._folder / REPORT) and not self._is_of_run():
            raise FileExistsError(
                f"{printable(self._folder)} holds the report of another run, with other checkpoints, sets or another "
                f"recipe; give another folder or {self._option}."
            )

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Give a folder to make the files in, which get their places when the block is left without an error.

        Files of an earlier report of the run that are not made again go.
        """
        with Stage(self._folder / REPORT) as stage, naming(self._folder):
            yield stage.folder
            self.require_own()
            for inner in self._inner:
                if is_there(stage.folder / inner.name):
                    inner.mkdir(exist_ok=True)
            # The report first: by it, files of a process that is killed between two of them are known.
            for name in sorted(self._names, key=lambda name: name != REPORT):
                if is_there(stage.folder / name):
                    stage.install(name, self._folder / name)
                elif self._run is not None and is_there(self._folder / name) and self._is_own(self._folder / name):
                    (self._folder / name).unlink()
            for inner in self._inner:
                with suppress(OSError):  # which is not there, or not empty
                    inner.rmdir()

    @property
    def _inner(self) -> list[Path]:
        """The folders in this one that some of the files go to."""
        return [self._folder / parent for parent in sorted({str(Path(name).parent) for name in self._names} - {"."})]

    def _foreign(self) -> str | None:
        """Return the first file that is no report's of this kind, or stands where nothing else may."""
        is_report = self._is_own(self._folder / REPORT)
        paths = {name: self._folder / name for name in self._names if is_there(self._folder / name)}
        found = [name for name, path in paths.items() if not (is_report and self._is_own(path))]
        if self._alone:
            own = {Path(name).parts[0] for name in self._names}
            found += [each.name for each in self._folder.iterdir() if each.name not in own and each.name[0] != "."]
        return min(found, default=None)

    def _is_of_run(self) -> bool:
        begin = _begin_of(self._folder / REPORT)
        return mark_of(self._run or "").encode() in begin

    def _is_own(self, path: Path) -> bool:
        """Tell whether a file is what a report of this kind holds under its name."""
        if not path.is_file():
            return False
        try:
            if path.suffix == ".safetensors":
                return Provenance.of(open_checkpoint(path)).kind == "merged"
            if path.name == RECIPE:
                content = parse_json(path.read_text(encoding="utf-8"), "a recipe")
                return "rule" in content and bool(MergeRecipe.from_dict(content))
            begin = _begin_of(path)
        except (ValueError, TypeError, CheckpointError):
            return False
        if path.name == PAGE:
            return MARK.encode() in begin
        wanted = {REPORT: (f"{self._title}\n".encode(),), RESULTS: (b"model,",)}
        return begin.startswith(wanted.get(path.name) or _BEGINS.get(path.suffix, ()))


def _begin_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_BEGIN)

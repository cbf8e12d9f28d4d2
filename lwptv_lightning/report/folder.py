"""The folder of a report: its files are made aside and appear whole, and no file that is another's is replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from lwptv_lightning.checkpoints import CheckpointError, Provenance, open_checkpoint
from lwptv_lightning.files import Stage, is_there, naming
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import parse_json, printable

REPORT, RESULTS, RECIPE = "report.md", "results.csv", "recipe.json"
_PNG = b"\x89PNG\r\n\x1a\n"


class ReportFolder:
    """Writes the files of a report, in place of those that an earlier report of the same title left, and no other's.

    Args:
        folder: Where to write; made where it does not exist.
        title: The first line of ``report.md``, by which a report of its kind is known.
        names: The files of such a report.
        overwrite: Whether to replace any files of these names.
        alone: Whether nothing else may stand in the folder either, but hidden files.
    """

    def __init__(
        self, folder: Path, title: str, names: Collection[str], *, overwrite: bool = False, alone: bool = False
    ) -> None:
        self._folder = folder
        self._title = title
        self._names = names
        self._overwrite = overwrite
        self._alone = alone

    def require_own(self) -> None:
        """Raise, before any work, where the report would replace another's file, or cannot be written.

        Raises:
            FileExistsError: There is such a file, which is named.
            OSError: Nothing can be written there.
        """
        with Stage(self._folder / REPORT):
            pass
        foreign = [] if self._overwrite else sorted(path.name for path in self._folder.iterdir() if self._foreign(path))
        if foreign:
            raise FileExistsError(
                f"{printable(self._folder)} holds {foreign[0]!r}, which no earlier report of this kind wrote; give "
                "another folder or overwrite=True."
            )

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Give a folder to make the files in, which get their places when the block is left without an error."""
        with Stage(self._folder / REPORT) as stage, naming(self._folder):
            yield stage.folder
            self.require_own()
            # The report first: by it, files of a process that is killed between two of them are known.
            for name in sorted(self._names, key=lambda name: name != REPORT):
                if is_there(stage.folder / name):
                    stage.install(name, self._folder / name)

    def _foreign(self, path: Path) -> bool:
        if path.name.startswith("."):
            return False
        if path.name not in self._names:
            return self._alone
        return not (self._is_own(self._folder / REPORT) and self._is_own(path))

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
            with path.open("rb") as file:
                begin = file.read(1000)
        except (ValueError, TypeError, CheckpointError):
            return False
        wanted = {REPORT: f"{self._title}\n".encode(), RESULTS: b"model,"}
        return begin.startswith(wanted.get(path.name, _PNG))

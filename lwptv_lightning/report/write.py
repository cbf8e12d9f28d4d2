"""`write_report`: what one run found, as a page, as Markdown, as CSV and as figures, in one folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lwptv_lightning.registry import require_kind
from lwptv_lightning.report.document import sections_of
from lwptv_lightning.report.figures import FIGURE_NAMES, draw_figures
from lwptv_lightning.report.findings import Findings
from lwptv_lightning.report.folder import PAGE, RECIPE, REPORT, RESULTS, ReportFolder
from lwptv_lightning.report.html import html_of
from lwptv_lightning.report.markdown import FIGURES, heading_of, markdown_of

REPORT_FILES = (
    *(REPORT, PAGE, RESULTS, RECIPE),
    *(f"{FIGURES}/{name}.{suffix}" for name in FIGURE_NAMES for suffix in ("png", "svg", "csv")),
)
"""What a report can hold."""


def write_report(findings: Findings, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write ``report.html``, ``report.md``, ``results.csv``, the recipe, and each figure as PNG, SVG and CSV.

    The page is one file that needs no network, no script and no other file. Each file is whole or as it was. The same
    findings make the same bytes.

    Args:
        findings: What was found.
        folder: Where to write; made where it does not exist.
        overwrite: Whether to replace another run's report, and files of these names that no report wrote.

    Returns:
        The page.

    Raises:
        FileExistsError: The folder holds another run's report, or such a file that is none's.
        OSError: Nothing can be written there.

    Example:
        >>> import tempfile
        >>> from lwptv_lightning.report import ResultRow, ResultTable
        >>> found = Findings("Mine", ResultTable([ResultRow("base", {"id/a": 0.5, "id/avg": 0.5})]))
        >>> with tempfile.TemporaryDirectory() as place:
        ...     page = write_report(found, place)
        ...     print(sorted(path.name for path in page.parent.iterdir()))
        ['report.html', 'report.md', 'results.csv']
    """
    require_kind("findings", findings, Findings, "Findings")
    files = report_folder(folder, findings.title, findings.identity, overwrite=overwrite)
    files.require_own()
    with files.writing() as made:
        make_report(findings, made)
    return Path(folder) / PAGE


def report_folder(
    folder: str | Path,
    title: str,
    identity: str | None,
    *,
    overwrite: bool = False,
    beside: Collection[str] = (),
    option: str = "overwrite=True",
) -> ReportFolder:
    """Return the folder of such a report, whose `ReportFolder.require_own` tells before a run whether it can be there.

    Args:
        folder: Where it is to stand.
        title: Its title.
        identity: Its run, as `Findings.identity`, which `identity_of` makes of a text; ``None`` where it is not known
            yet, and any run's report may be there.
        overwrite: As in `write_report`.
        beside: Further files that belong to it.
        option: How one asks for ``overwrite``, in messages.
    """
    require_kind("folder", folder, str | Path, "a path")
    names = (*REPORT_FILES, *beside)
    return ReportFolder(Path(folder), heading_of(title), names, run=identity, overwrite=overwrite, option=option)


def make_report(findings: Findings, folder: Path) -> list[str]:
    """Make the files of a report in a folder that is nobody else's yet, and return the names of its figures."""
    drawn = draw_figures(findings)
    pictures = [drawing.picture() for drawing in drawn]
    for drawing, picture in zip(drawn, pictures, strict=True):
        (folder / FIGURES).mkdir(exist_ok=True)
        (folder / FIGURES / f"{drawing.name}.svg").write_bytes(picture.light)
        (folder / FIGURES / f"{drawing.name}.png").write_bytes(drawing.png())
        (folder / FIGURES / f"{drawing.name}.csv").write_text(drawing.csv, encoding="utf-8")
    sections = sections_of(findings, pictures)
    text = markdown_of(findings.title, sections, findings.identity)
    (folder / REPORT).write_text(text, encoding="utf-8")
    (folder / PAGE).write_text(html_of(findings.title, sections), encoding="utf-8")
    (folder / RESULTS).write_text(findings.table.csv(), encoding="utf-8")
    if findings.recipe is not None:
        (folder / RECIPE).write_text(findings.recipe.to_json() + "\n", encoding="utf-8")
    return [drawing.name for drawing in drawn]

"""The report's parts, in their order: the same for HTML and for Markdown, which write them each in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lwptv_lightning.registry import LoaderName, printable, printable_name
from lwptv_lightning.report.findings import Findings, Interval
from lwptv_lightning.report.table import ResultRow, ResultTable

_MOST_CELLS = 12_000
"""Of a table in a report; what is beyond stands in the CSV file."""
_MOST_ROWS = 600
_MOST_PARAGRAPHS = 200


@dataclass(frozen=True)
class Words:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Cells:
    """A table of plain texts.

    Attributes:
        caption: What the table is.
        headings: One for each column.
        rows: As many cells each; the first is the row's heading.
        words: Numbers of the columns that hold words and no numbers.
        marked: Numbers of the rows that are pointed out.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset({0})
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: What its files are called, without folder and suffix.
        title: What it shows.
        alt: What it shows, in numbers, for those who do not see it.
        caption: How it is read.
        light: The SVG on a light ground.
        dark: The same on a dark one.
        size: Its natural width and height, in pixels.
    """

    name: str
    title: str
    alt: str
    caption: str
    light: bytes = b""
    dark: bytes = b""
    size: tuple[int, int] = (0, 0)


Block = Words | Cells | Picture


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading of its own; without one, what stands above all headings."""

    title: str
    blocks: Sequence[Block]


def sections_of(findings: Findings, pictures: Iterable[Picture] = ()) -> list[Section]:
    """Return the parts of a report; those without content are left out.

    Args:
        findings: What is told.
        pictures: The figures that could be drawn of it.

    Example:
        >>> table = ResultTable([ResultRow("base", {"id/a": 0.5, "id/avg": 0.5})])
        >>> [section.title for section in sections_of(Findings("Mine", table))]
        ['Results', 'The sets', 'How it was made']
    """
    drawn: list[Section] = [Section(picture.title, [picture]) for picture in pictures]
    parts = [
        Section("", [Words(text) for text in _some(findings.conclusion)]),
        Section("Results", _results(findings)),
        Section("Paired differences", _differences(findings)),
        Section("The sets", _sets(findings)),
        *drawn,
        Section("How it was made", _made(findings)),
        Section("Notes", [Words(text) for text in _some(findings.notes)]),
    ]
    return [section for section in parts if section.blocks]


def _some(texts: Sequence[str]) -> list[str]:
    rest = len(texts) - _MOST_PARAGRAPHS
    return [*texts[:_MOST_PARAGRAPHS], *([f"And {rest} more."] if rest > 0 else [])]


def _results(findings: Findings) -> list[Block]:
    table, left_out = _within_bounds(findings.table)
    if not table.rows:
        return []
    chosen = {point.name for point in findings.points if point.chosen}
    marked = frozenset(number for number, row in enumerate(table.rows) if row.name in chosen)
    columns = len(table.headings)
    rows = [[printable_name(name), *cells, printable(note)] for name, *cells, note in map(table.cells, table.rows)]
    headings = list(table.headings)
    headings[0] = "model"
    has_notes = any(row.note for row in table.rows)
    has_seconds = any(row.seconds is not None for row in table.rows)
    averages = [at for at, name in enumerate(table.columns, 1) if LoaderName.of_figure(name).is_average]
    single = [at for at in range(1, columns - 2) if at not in averages]
    # Averages first: a page may be narrower than the table.
    kept = [0, *averages, *([columns - 1] if has_notes else []), *single, *([columns - 2] if has_seconds else [])]
    cells = Cells(
        "Accuracy of each model, in %",
        [printable_name(headings[at]) for at in kept],
        [[row[at] for at in kept] for row in rows],
        frozenset(place for place, at in enumerate(kept) if at in (0, columns - 1)),
        marked,
    )
    if any(row.plain for row in table.rows):
        cells = replace(cells, caption="Each model's figures: accuracies in %, other measures as they are")
    explained = [
        "ID (in-domain) sets hold samples of the tasks that were merged, OOD (out-of-domain) sets any other data. "
        "An average gives every set of its domain, or of its group, the same weight."
    ]
    if marked:
        explained.append("Rows in bold were chosen.")
    if has_seconds:
        explained.append(
            findings.seconds
            or "Seconds are what a merge takes on its own: saliency statistics, pruning and the rule, no evaluation. "
            "Where the column is empty nothing was merged, or the time was not taken."
        )
    return [cells, Words(" ".join(explained)), *([Words(left_out)] if left_out else [])]


def _within_bounds(table: ResultTable) -> tuple[ResultTable, str]:
    """Return as much of a table as a page can show, and what is said of the rest."""
    left_out = []
    if len(table.rows) * len(table.columns) > _MOST_CELLS and len(table.of_averages().columns):
        table = table.of_averages()
        left_out.append("the figures of single sets")
    most = max(20, min(_MOST_ROWS, _MOST_CELLS // max(len(table.columns), 1)))
    if len(table.rows) > most:
        left_out.append(f"{len(table.rows) - most} further rows")
        table = ResultTable(table.rows[:most])
    most_columns = _MOST_CELLS // max(len(table.rows), 1)
    if len(table.columns) > most_columns:
        left_out.append(f"{len(table.columns) - most_columns} further columns")
        kept = set(table.columns[-most_columns:])
        table = ResultTable([_only(row, kept) for row in table.rows])
    return table, f"Not shown here, and in results.csv: {', '.join(left_out)}." if left_out else ""


def _only(row: ResultRow, names: set[str]) -> ResultRow:
    return replace(row, figures={name: value for name, value in row.figures.items() if name in names})


def _differences(findings: Findings) -> list[Block]:
    given = findings.differences[:_MOST_ROWS]
    if not given:
        return []
    overs = list(dict.fromkeys(over for each in given for over in each.over))
    rows = [
        [printable_name(each.name), printable_name(each.other), *(_interval(each.over.get(over)) for over in overs)]
        for each in given
    ]
    headings = ["model", "minus", *(_over(over) for over in overs)]
    coverage = f"{100 * findings.confidence:.4g} %"
    cells = Cells(f"Differences in points, with {coverage} intervals", headings, rows, frozenset({0, 1}))
    text = (
        f"Both models saw the same samples. In brackets is the {coverage} interval of the paired difference; where it "
        "holds 0, these samples do not tell the two apart."
    )
    rest = len(findings.differences) - len(given)
    return [cells, Words(text), *([Words(f"{rest} further pairs are not shown.")] if rest else [])]


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * end for end in interval))


def _over(over: str) -> str:
    parsed = LoaderName.of_figure(f"{over}/avg")
    return printable_name(parsed.heading.removesuffix(" avg") if parsed.over else over)


def _sets(findings: Findings) -> list[Block]:
    about = {each.name: each for each in findings.sets}
    names = [name for name in findings.table.columns if not LoaderName.of_figure(name).is_average]
    names = list(dict.fromkeys([*about, *(name for name in names if "/" in name and name not in about)]))
    if not names:
        return []
    rows = []
    for name in names[:_MOST_ROWS]:
        parsed, one = LoaderName.of_figure(name), about.get(name)
        kind = {"id": "ID", "ood": "OOD"}.get(parsed.domain, parsed.domain)
        kind += "" if parsed.group is None else f", group {parsed.group}"
        counts = [
            "" if one is None or count is None else f"{count:,}"
            for count in (getattr(one, "images", None), getattr(one, "classes", None))
        ]
        rows.append([printable_name(parsed.name), printable_name(kind), *counts, printable(one.about) if one else ""])
    headings = ["set", "domain", "samples", "classes", "what it is"]
    kept = [at for at in range(5) if at < 2 or any(row[at] for row in rows)]
    cells = Cells(
        "The sets that every model was evaluated on",
        [headings[at] for at in kept],
        [[row[at] for at in kept] for row in rows],
        frozenset(number for number, at in enumerate(kept) if at in (0, 1, 4)),
    )
    rest = len(names) - len(rows)
    return [cells, *([Words(f"{rest} further sets are not shown.")] if rest else [])]


def _made(findings: Findings) -> list[Block]:
    recipe = {} if findings.recipe is None else _told(findings.recipe.to_dict())
    tables = [
        ("The recipe", ("field", "value"), recipe),
        ("What was merged", ("checkpoint", "fingerprint"), findings.fingerprints),
        ("Seeds", ("of", "seed"), findings.seeds),
        ("Versions", ("library", "version"), findings.versions),
    ]
    blocks: list[Block] = [] if findings.recipe is None else [Words(f"Recipe: {findings.recipe.describe()}.")]
    blocks += [_pairs(*table) for table in tables if table[2]]
    return [*blocks, Words(f"Run {findings.identity}.")]


def _pairs(caption: str, headings: tuple[str, str], values: Mapping[str, object]) -> Cells:
    rows = [
        [printable_name(name), printable("unknown" if value is None else value, 400)] for name, value in values.items()
    ]
    if len(rows) > _MOST_ROWS:
        rows = [*rows[:_MOST_ROWS], [f"and {len(rows) - _MOST_ROWS} more", ""]]
    return Cells(caption, headings, rows, frozenset({0, 1}))


def _told(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of a recipe that say something, the rule's own after its name."""
    rule = dict(recipe["rule"])
    own = {"rule": rule.pop("name"), **{f"rule: {name}": value for name, value in rule.items()}}
    fields = own | {name: value for name, value in recipe.items() if name != "rule"}
    said = {name: value for name, value in fields.items() if value not in (None, [], ())}
    return {name: ", ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in said.items()}

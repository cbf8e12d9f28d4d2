"""The demo on few images: its table, its controls and its files."""

import csv
import json

import pytest
from rich.console import Console
from safetensors import safe_open

from lwptv_lightning import MergeRecipe, zoo
from lwptv_lightning.registry import printable
from lwptv_lightning.zoo import run_demo, zoo_module
from lwptv_lightning.zoo.demo import COEFFICIENTS, RANDOM_MASKS, RULES
from lwptv_lightning.zoo.domains import loader_name

OUT = "[bold]out[/bold] \x1b[2J"
"""A folder whose name would be obeyed where it is not shown as text."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with (folder / "printed.txt").open("w", encoding="ascii") as file:
        measured = run_demo(folder / OUT, size=20, console=Console(file=file, width=250))
    return folder, measured


def test_the_table_has_base_experts_rules_and_controls(demo):
    _, measured = demo
    names = [row.name for row in measured.table.rows]
    wanted = {"base", *(f"expert {task}" for task in zoo.ID_SETS), *RULES, *(f"{rule} pruned" for rule in RULES)}
    wanted |= {f"task_arithmetic x {coefficient:g}" for coefficient in COEFFICIENTS}
    wanted |= {f"task_arithmetic, mean of {RANDOM_MASKS} random masks", "task_arithmetic x 0.5 pruned"}
    assert set(names) == wanted
    assert len(names) == len(wanted)
    figures = {*map(loader_name, zoo.ID_SETS + zoo.OOD_SETS), "id/avg", "ood/near/avg", "ood/far/avg", "ood/avg"}
    assert all(row.figures.keys() == figures for row in measured.table.rows)


def test_the_row_of_the_default_coefficient_is_the_unpruned_rule(demo):
    _, measured = demo
    rows = {row.name: row for row in measured.table.rows}
    assert rows["task_arithmetic x 0.3"].figures == rows["task_arithmetic"].figures
    assert rows[f"task_arithmetic x {measured.best['task_arithmetic']:g}"].note.startswith("best")


def test_two_choices_on_the_validation_draw_are_noted(demo):
    folder, measured = demo
    notes = [(row.name, row.note) for row in measured.table.rows if "x" in row.name and row.note]
    assert sorted(", ".join(note for _, note in notes).split(", ")) == ["best", "one_standard_error"]
    assert dict(notes) == measured.chosen
    cautious, best = (next(name for name, note in notes if word in note) for word in ("one_standard_error", "best"))
    assert measured.test.changes[cautious] <= measured.test.changes[best]
    for text in ((folder / OUT / "report.md").read_text(), (folder / "printed.txt").read_text()):
        assert "`one_standard_error` the smallest change" in text


def test_six_files_are_written_and_say_the_same(demo):
    folder, measured = demo
    out = folder / OUT
    assert sorted(path.name for path in out.iterdir()) == [
        "id_ood.png",
        "merged.safetensors",
        "recipe.json",
        "report.md",
        "results.csv",
        "saliency.png",
    ]
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == [row.name for row in measured.table.rows]
    recipe = MergeRecipe.from_dict(json.loads((out / "recipe.json").read_text()))
    with safe_open(out / "merged.safetensors", "pt") as handle:
        assert MergeRecipe.from_json(handle.metadata()["lwptv_recipe"]) == recipe
        assert set(handle.keys()) == set(zoo_module().vectors.headers)
    report = (out / "report.md").read_text()
    printed = (folder / "printed.txt").read_text()
    for text in (report, printed):
        assert all(f"| {words} " in text for words in ("near OOD", "far OOD"))
    assert all(f"| {words} |" in report for words in ("ood near/georgian noise", "ood far/digits", "OOD near avg"))
    assert "georgian" not in printed  # averages alone fit a terminal
    assert printable(out.resolve()) in printed.replace("\n", "")
    assert "task_arithmetic pruned" in printed

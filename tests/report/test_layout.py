"""Tables of figures on terminals of any width."""

import io
import re

import pytest
from _helpers.odd_names import HONEST
from rich.console import Console

from lwptv_lightning.registry import width_of
from lwptv_lightning.report import ResultRow, ResultTable, print_table


def figures(groups, sets=2, name="set"):
    found = {f"id/{name}_{number}": 0.5 for number in range(sets)}
    found |= {f"ood/{group}/{name}_{number}": 0.25 for group in groups for number in range(sets)}
    found |= {f"ood/{group}/avg": 0.125 for group in groups}
    return found | {"id/avg": 0.75, "ood/avg": 0.375}


def shown(table, width, title=None, **options):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    print_table(table.rich(title, width=min(width, 100), **options), console, wide=options.get("wide", False))
    return console.file.getvalue()


def test_where_there_is_room_every_set_is_shown():
    text = shown(ResultTable([ResultRow("base", figures(["near"], 1))]), 200)
    assert {"set", "0", "near/"} <= set(text.split())
    assert "sets" not in text


def test_sets_fold_into_averages_that_say_of_how_many_they_are():
    text = shown(ResultTable([ResultRow("base", figures(["near", "far"], 6), 1.5, "best")]), 200, "Figures")
    row = next(line for line in text.splitlines() if "base" in line)
    assert re.findall(r"[\d.]+", row) == ["12.5", "12.5", "75.0", "37.5", "1.50"]
    assert text.count("6 sets") == 3
    assert text.count("12 sets") == 1
    assert "best" in row
    assert "set_0" not in text.replace("\n", "_")
    assert "Figures" in text


def test_columns_that_hold_nothing_are_left_out():
    text = shown(ResultTable([ResultRow("base", figures(["near"]))]), 100)
    assert "seconds" not in text
    assert "note" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 300])
@pytest.mark.parametrize("groups", [0, 1, 5, 20])
@pytest.mark.parametrize("name", ["x", "x" * 70, "é中" * 40])
def test_no_line_is_wider_than_there_is_room(width, groups, name):
    names = [f"{name}_{group}" for group in range(groups)]
    rows = [ResultRow(f"{name} {number} {name}", figures(names), 1.5, "word " * number * 9) for number in range(3)]
    text = shown(ResultTable(rows), width, name)
    assert max(map(width_of, text.splitlines())) <= min(width, 100)
    assert text.count("12.5") == groups * 3
    assert "…" not in text


def test_the_domains_averages_come_first_where_there_are_blocks():
    text = shown(ResultTable([ResultRow("base", figures([f"group_{number}" for number in range(20)]), 1.5)]), 100)
    first = re.findall(r"[\d.]+", next(line for line in text.splitlines() if "base" in line))
    assert first[:2] == ["75.0", "37.5"]


def test_names_that_would_be_alike_are_not_shortened():
    names = [f"task_arithmetic x 0.3, mean_abs 0.5, ranked over {of} tasks, with LiNeS from 0.1 to 0.9" for of in "xy"]
    text = shown(ResultTable([ResultRow(name, figures(["a", "b"], 9)) for name in names]), 60)
    assert all(f"over {of}" in " ".join(text.replace("│", " ").split()) for of in "xy")


def test_all_is_there_where_it_is_asked_for():
    name = "a very long name of a model, " * 6
    text = shown(ResultTable([ResultRow(name, figures(["near", "far"], 12), note="n" * 90)]), 100, wide=True)
    assert name in text
    assert "n" * 90 in text
    assert text.count("25.0") == 24


@pytest.mark.parametrize("name", HONEST)
def test_names_of_all_writings_are_shortened_as_they_are_seen(name):
    text = shown(ResultTable([ResultRow(name * 9, figures(["near", "far"], 9, name=name[:9]))]), 60)
    assert max(map(len, text.splitlines())) <= 120


def test_parts_of_a_metric_are_counted_as_one_set():
    found = {f"id/{name}/{part}": 0.5 for name in "abcdefghij" for part in ("accuracy", "f1")}
    found |= {"id/avg/accuracy": 0.5, "id/avg/f1": 0.25}
    text = shown(ResultTable([ResultRow("base", found)]), 100)
    assert text.count("10 sets") == 2

from pathlib import Path

from rich.console import Console

from lwptv_lightning.merging import AdaptedLayer, SavedAdapter
from lwptv_lightning.report import adapter_summary, adapter_table


def saved(**changes):
    layers = (AdaptedLayer("fc.weight", 3, 2.0, 0.25), AdaptedLayer("a.[b].weight", 1, 1.0, 0.5))
    given = {
        "path": Path("adapter"),
        "layers": layers,
        "modules": (),
        "whole": (),
        "dropped": {},
        "excluded": (),
        "error": 0.3125,
    }
    return SavedAdapter(**{**given, "told_by": "model", **changes})


def test_the_table_has_a_line_for_each_layer(capsys):
    Console(width=80).print(adapter_table(saved()))
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in capsys.readouterr().out.splitlines()]
    assert ["fc.weight", "3", "2", "0.25"] in lines
    assert ["a.[b].weight", "1", "1", "0.5"] in lines


def test_the_summary_names_the_whole_error_and_the_worst_layer():
    assert (
        adapter_summary(saved()) == "Relative error of all that changed: 0.312; the worst layer is a.[b].weight, 0.5."
    )


def test_the_summary_names_what_is_no_factor():
    whole = tuple(f"w{number}" for number in range(7))
    lines = adapter_summary(
        saved(modules=("norm",), whole=whole, dropped={"x": 0.125}, excluded=("head.*",), told_by="names")
    ).split("\n")
    assert lines[1] == "Held whole, as modules of the adapter: norm."
    assert lines[2] == "Held whole, and put into the base itself by PEFT when it loads: w0, w1, w2, w3, w4 and 2 more."
    assert lines[3] == "Dropped: x (12.5% of the norm)."
    assert lines[4] == "Not in it, since it was not merged: head.*."
    assert lines[5].startswith("Names and shapes alone told")

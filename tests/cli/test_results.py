"""What a command found, for people and for programs."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.table import Table

from lwptv_lightning.cli import main
from lwptv_lightning.cli.main import COMMANDS
from lwptv_lightning.cli.results import Result, plain, print_document, print_shown
from lwptv_lightning.report import ResultRow, ResultTable


@dataclass
class Found:
    """Values of several kinds."""

    path: Path
    values: tuple


def refuse(token):
    raise AssertionError(token)


def test_a_document_is_json_without_tokens_of_pythons(capsys):
    print_document({"found": Found(Path("a b"), (float("nan"), -float("inf"), 1, True, None, {"x"})), 3: "中\udcff"})
    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"found": {"path": "a b", "values": [None, None, 1, True, None, ["x"]]}, "3": "中\\udcff"}


def test_values_stay_what_json_has():
    assert plain([0.1, True, "a", None, {"b": (1,)}]) == [0.1, True, "a", None, {"b": [1]}]


FIGURES = {f"ood/group_{number}/{name}": 0.5 for number in range(20) for name in ("a_long_name", "b")}
FIGURES |= {f"ood/group_{number}/avg": 0.25 for number in range(20)} | {"ood/avg": 0.5, "id/avg": 0.75}


@pytest.mark.parametrize("environment", [{}, {"COLUMNS": "60"}, {"FORCE_COLOR": "1"}])
def test_tables_fit_unless_all_is_asked_for(environment, capsys, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    table = Table(*(f"column {number}" for number in range(40)))
    table.add_row(*("cell " * 3 for _ in range(40)))
    shown = ["a sentence", ResultTable([ResultRow("x" * 150, FIGURES, note="word " * 40)]), table]
    print_shown(shown)
    narrow = capsys.readouterr().out
    assert narrow.startswith("a sentence\n")
    if "FORCE_COLOR" not in environment:
        assert max(map(len, narrow.splitlines())) <= 100
        assert "\x1b" not in narrow
    print_shown(shown, wide=True)
    wide = capsys.readouterr().out
    assert max(map(len, wide.splitlines())) > 400
    assert "x" * 150 in wide


@pytest.fixture
def result(monkeypatch):
    """``result(found, *arguments)``: let a command find something, and return its exit code."""

    def run(found, *arguments):
        def act(options):
            print("noise")  # noqa: T201
            return found

        monkeypatch.setattr(COMMANDS["scores"], "run", act)
        try:
            main(["scores", *arguments])
        except SystemExit as stop:
            return stop.code
        return 0

    return run


def test_a_check_that_fails_is_an_exit_code_and_no_error(result, capsys):
    assert result(Result({"passed": False}, ["it is not"], passed=False)) == 1
    assert capsys.readouterr().out == "noise\nit is not\n"
    assert result(Result({"passed": False}, ["it is not"], passed=False), "--json") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"command": "scores", "passed": False}
    assert captured.err == "noise\n"


def test_other_processes_print_no_result(result, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert result(Result({"a": 1}, ["text"]), "--json") == 0
    assert capsys.readouterr().out == ""


def test_errors_are_documents_too(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    wrong = {
        ("check", "a.pt", "x=b.pt"): 1,
        ("merge",): 2,
        ("validate", "--config", "no.yaml"): 2,
        ("rules", "--nope"): 2,
    }
    for arguments, code in wrong.items():
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--json"])
        assert stop.value.code == code or (code == 1 and isinstance(stop.value.code, str))
        found = json.loads(capsys.readouterr().out)
        assert found.keys() == {"command", "error", "exit_code"}
        assert (found["command"], found["exit_code"]) == (arguments[0], code)
        assert found["error"]


def test_an_interruption_is_a_document(capsys, monkeypatch):
    def act(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS["scores"], "run", act)
    with pytest.raises(SystemExit, match="^130$"):
        main(["--json", "scores"])
    assert json.loads(capsys.readouterr().out) == {"command": "scores", "error": "interrupted.", "exit_code": 130}

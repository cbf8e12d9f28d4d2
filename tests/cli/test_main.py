"""The program's own behaviour: help at once, and the commands that there are."""

import subprocess
import sys
from pathlib import Path

import pytest

from lwptv_lightning import cli
from lwptv_lightning.cli.main import COMMANDS, main

LIGHT = (
    "demo",
    "init",
    "merge",
    "check",
    "diff",
    "rules",
    "scores",
    "zoo",
)  # `validate` asks Lightning for its options


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command, "--help"] for command in LIGHT)], ids=str)
def test_help_loads_neither_torch_nor_lightning(arguments):
    script = (
        "import sys\nfrom lwptv_lightning.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(sorted({'torch', 'lightning', 'timm', 'blake3', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_runs_as_a_script():
    command = [sys.executable, "-m", "lwptv_lightning", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("lwptv-lightning ")


def test_every_command_has_a_file_and_a_line_of_help(capsys):
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert files - set(COMMANDS) == {
        "__init__",
        "main",
        "arguments",
        "configured",
        "ending",
        "configuration",
        "paths",
        "checked",
        "made",
        "help",
        "results",
        "running",
        "suite_text",
        "from_config",
        *(f"found_{what}" for what in ("architecture", "data", "models", "sets")),
    }
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, command in COMMANDS.items():
        assert f"{name} {command.run.__doc__}" in shown


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["mrge"])
    assert "mrge" in capsys.readouterr().err

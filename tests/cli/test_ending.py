"""How commands end, whatever is raised in them: one line, the code that a shell expects, and a traceback on demand."""

import argparse
import os
import signal
import subprocess
import sys

import pytest
from _helpers.processes import environment

from lwptv_lightning.cli import main
from lwptv_lightning.cli.main import COMMANDS

RUNNABLE = {
    "demo": ["demo"],
    "init": ["init", "own"],
    "merge": ["merge", "base", "a=a", "--out", "m.safetensors"],
    "check": ["check", "base", "a=a"],
    "diff": ["diff", "base", "a"],
    "verify": ["verify", "m.safetensors"],
    **{command: [command, "--config", "c.yaml"] for command in ("validate", "sweep", "tune", "collect", "learn")},
    "rules": ["rules"],
    "scores": ["scores"],
    "zoo": ["zoo", "build", "--out", "z"],
    "extract": ["extract", "base", "a", "--rank", "2", "--out", "adapter"],
    "card": ["card", "merged"],
    "push": ["push", "merged", "owner/model"],
}


@pytest.fixture
def failing(monkeypatch, capsys):
    """``failing(command, error, *more)``: let a command raise, and return its exit code and what it said."""

    def run(command, error, *arguments):
        def fail(options: argparse.Namespace) -> None:
            """Fail."""
            raise error

        monkeypatch.setattr(COMMANDS[command], "run", fail)
        with pytest.raises(SystemExit) as stop:
            main(list(arguments) or RUNNABLE[command])
        said = capsys.readouterr().err
        if not isinstance(stop.value.code, int):  # which the interpreter prints, and exits with 1
            return 1, said + stop.value.code
        return stop.value.code, said

    return run


class Strange(BaseException):
    """What nobody expects."""


@pytest.mark.parametrize(
    "error", [AttributeError("x\ny"), RuntimeError(), AssertionError(), MemoryError(), Strange("x")]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_nobody_expects_is_one_line_with_its_kind(command, error, failing):
    code, said = failing(command, error)
    assert code == 1
    assert said.startswith(f"lwptv {command}: unexpected {type(error).__name__}")
    assert "--debug" in said
    assert "\n" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize("command", COMMANDS)
def test_debug_shows_the_traceback_wherever_it_stands(command, place, failing):
    arguments = list(RUNNABLE[command])
    arguments.insert(len(arguments) if place == -1 else place, "--debug")
    code, said = failing(command, AttributeError("x"), *arguments)
    assert code == 1
    assert "Traceback (most recent call last)" in said
    assert "raise error" in said
    assert said.rstrip().endswith(f"lwptv {command}: unexpected AttributeError: x.")


def test_debug_after_two_dashes_is_a_name(monkeypatch):
    seen = []
    monkeypatch.setattr(COMMANDS["diff"], "run", seen.append)
    main(["diff", "--", "--debug", "b"])
    assert (seen[0].first, seen[0].second) == ("--debug", "b")


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_an_expected_error_is_its_message(debug, failing):
    code, said = failing("check", ValueError("a is b."), "check", "x", "a=y", *debug)
    assert code == 1
    assert said.endswith("lwptv check: a is b.")
    assert ("Traceback" in said) == bool(debug)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interruption_is_130_and_one_line(command, failing):
    assert failing(command, KeyboardInterrupt()) == (130, f"lwptv {command}: interrupted.\n")


def test_an_interruption_of_which_lightning_made_an_exit(monkeypatch, capsys):
    def run(options):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr(COMMANDS["rules"], "run", run)
    with pytest.raises(SystemExit) as stop:
        main(["rules"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "lwptv rules: interrupted.\n"


def test_a_broken_pipe_of_something_else_is_told(failing):
    assert failing("check", BrokenPipeError(32, "Broken pipe")) == (1, "lwptv check: [Errno 32] Broken pipe")


def test_an_output_that_nobody_reads_ends_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "lwptv_lightning", "rules"]
    done = subprocess.run(command, env=environment(), stdout=writing, stderr=subprocess.PIPE, timeout=120)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + 13, b"")


def test_a_signal_ends_a_command_with_one_line():
    script = (
        # Ctrl-C interrupts, also where the shell that started all this ignores it.
        "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from lwptv_lightning.cli import main\nfrom lwptv_lightning.cli.main import COMMANDS\n"
        f"COMMANDS['scores'].run = lambda options: os.kill(os.getpid(), {int(signal.SIGINT)})\nmain(['scores'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (130, "lwptv scores: interrupted.\n")


def test_help_tells_of_debug(capsys):
    for arguments in (["--help"], ["merge", "--help"], ["zoo", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "--debug" in capsys.readouterr().out

"""A bar where someone sees it, and nothing elsewhere."""

import io
import os
import sys
import time

import pytest
from rich.console import Console

from lwptv_lightning.report import progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return super().isatty() or True  # an error where it is closed


@pytest.fixture
def terminal(monkeypatch):
    """A console of a terminal, as rich makes them."""
    monkeypatch.setenv("TERM", "xterm")
    return Console(file=Terminal(), width=80)


def test_long_work_has_a_bar_that_is_gone_in_the_end(terminal):
    with progress("Sweeping [b]x[/b]", 4, console=terminal, after=0.01) as advance:
        time.sleep(0.3)
        advance(3, "Sweeping\x1b[2J [i]recipe 3")
        with progress("Unseen", console=terminal) as inner:
            inner()
        with progress("Merging", console=terminal, after=0.1) as inner:
            time.sleep(0.2)
            inner()
            time.sleep(0.3)
    shown = terminal.file.getvalue()
    assert all(words in shown for words in ("Sweeping [b]x[/b]", "Sweeping\\x1b[2J [i]recipe 3", "75%", "Merging"))
    assert "\x1b[2J" not in shown
    assert "Unseen" not in shown
    assert shown.endswith("\x1b[2K\x1b[?25h\r")  # the lines are wiped, and the cursor is shown again


def test_short_work_shows_nothing(terminal):
    with progress("Merging", 2, console=terminal) as advance:
        advance(2)
    assert terminal.file.getvalue() == ""


def test_no_bar_stays_where_work_fails(terminal):
    def fail():
        with progress("Merging", console=terminal, after=0.01):
            time.sleep(0.1)
            raise KeyboardInterrupt

    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            fail()
        assert terminal.file.getvalue().count("\x1b[?25h") == times


def test_a_pipe_gets_nothing_whatever_the_environment_asks_for(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("Merging", 2, after=0) as advance:
        time.sleep(0.1)
        advance()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("silent", [{"TERM": "dumb"}, {"LOCAL_RANK": "1"}])
def test_neither_do_terminals_without_moves_and_other_processes(silent, terminal, monkeypatch):
    for name, value in silent.items():
        monkeypatch.setenv(name, value)
    with progress("Merging", console=terminal, after=0):
        time.sleep(0.1)
    assert terminal.file.getvalue() == ""


def test_a_closed_stream_is_no_terminal():
    stream = Terminal()
    stream.close()
    with progress("Merging", console=Console(file=stream), after=0) as advance:
        advance()


def test_what_is_printed_stays_and_results_are_no_part_of_it(terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", terminal.file)
    with progress("Merging", after=0) as advance:
        time.sleep(0.1)
        sys.stderr.write("a warning\n")
        sys.stdout.write("a result\n")
        advance()
    assert sys.stderr is terminal.file
    assert "a warning\n" in terminal.file.getvalue()
    assert capsys.readouterr().out == "a result\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_writes_to_the_stream_itself(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal.file)
    with progress("Merging", after=0):
        time.sleep(0.1)
        assert sys.stderr is not terminal.file
        if (child := os.fork()) == 0:
            os._exit(0 if sys.stderr is terminal.file else 1)
        assert os.waitpid(child, 0)[1] == 0

"""Each command that reads whole checkpoints says how far it is."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from _helpers.processes import environment
from _helpers.states import noise
from safetensors.torch import save_file

from lwptv_lightning.cli import main

TASKS = ["base.safetensors", "a=a.safetensors", "b=b.safetensors"]
COMMANDS = {
    "merge": ([*TASKS, "--rule", "ties", "--ratio", "0.5", "--out", "m.safetensors"], {"Reading", "Merging"}),
    "check": (TASKS, {"Reading"}),
    "diff": (["base.safetensors", "a.safetensors"], {"Comparing"}),
    "verify": (["made.safetensors", *TASKS], {"Checking bytes", "Merging"}),
    "extract": (["base.safetensors", "a.safetensors", "--rank", "1", "--out", "adapter"], {"Factorising"}),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = noise({f"blocks.{index}.fc.weight": torch.zeros(8, 8) for index in range(4)}, 0, 1.0)
    save_file(base, "base.safetensors")
    for seed, task in enumerate("ab", start=1):
        save_file(noise(base, seed, 0.01), f"{task}.safetensors")
    main(["merge", *TASKS, "--out", "made.safetensors"])
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_all_steps_that_are_announced_are_done(command, folder, monkeypatch, capsys):
    told = []

    @contextmanager
    def watch(what, total):
        done = []
        yield lambda steps=1, what=None: done.append(steps)
        told.append((what, total, sum(done)))

    monkeypatch.setattr(sys.modules["lwptv_lightning.cli.main"], "_watch", watch)
    arguments, expected = COMMANDS[command]
    main([command, *arguments])
    assert expected <= {what for what, total, _ in told if total}
    # Of a file that is read for its bytes, its header is no step.
    assert all(done == total for what, total, done in told if what != "Checking bytes")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no terminals to be had here")
def test_results_go_to_a_pipe_and_progress_to_the_terminal(folder):
    script = (
        "from lwptv_lightning.report import progress\nprogress.__wrapped__.__kwdefaults__['after'] = 0\n"
        f"from lwptv_lightning.cli import main\nmain(['merge', *{COMMANDS['merge'][0]}])"
    )
    ours, theirs = os.openpty()
    given = {**environment(), "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=given, stdout=subprocess.PIPE, stderr=theirs, timeout=120, check=True
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.stdout.decode().startswith("Merged a, b by ties")
    assert "\x1b" not in done.stdout.decode()
    assert "lwptv merge" in shown

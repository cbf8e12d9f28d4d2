"""Sweeps that are killed at random moments go on, and end with the file of one that never was; two share a store."""

import random
import signal
import time
from itertools import count, product

import pytest
from _helpers.forks import forked, kill, status_of

from lwptv_lightning.cli import main

RECIPES = list(product(("task_arithmetic", "ties", "dare"), (0, 0.3, 0.6), (0.2, 0.4, 0.6, 0.8)))

CONFIGURATION = """
model: {class_path: _helpers.swept.plain_module}
data: {class_path: _helpers.swept.small_suite}
trainer: {logger: false, accelerator: cpu, enable_progress_bar: false}
recipes:
"""


@pytest.fixture
def action(tmp_path, monkeypatch):
    """``action(folder, *options)``: a sweep from the shell."""
    form = "  r{}: {{rule: {}, ratio: {}, scale: {}}}\n"
    lines = "".join(form.format(number, *recipe) for number, recipe in enumerate(RECIPES))
    (tmp_path / "all.yaml").write_text(CONFIGURATION + lines)
    monkeypatch.chdir(tmp_path)

    def run(folder="whole", *options):
        (tmp_path / folder).mkdir(exist_ok=True)
        assert main(["sweep", "--config", "all.yaml", "--out", f"{folder}/found.csv", *options]) in (0, None)

    return run


def test_two_sweeps_at_a_time_share_a_store(action, tmp_path):
    both = [forked(lambda folder=folder: action(folder, "--store", "shared")) for folder in ("one", "other")]
    assert [status_of(child) for child in both] == [0, 0]
    assert len(list((tmp_path / "shared").glob("*.json"))) == len(RECIPES)
    assert (tmp_path / "one" / "found.csv").read_bytes() == (tmp_path / "other" / "found.csv").read_bytes()
    assert not [path for path in (tmp_path / "shared").iterdir() if path.name.endswith((".tmp", ".lock"))]


def test_a_killed_sweep_ends_with_the_same_file(amount, action, tmp_path):
    begin = time.monotonic()
    assert status_of(forked(action)) == 0
    duration, draw, number = time.monotonic() - begin, random.Random(0), 0
    stored = sorted(path.name for path in (tmp_path / "whole" / "found.csv.store").iterdir())
    assert len(stored) == 1 + len(RECIPES)
    found, tries = [], count()
    while number < amount(2, 10):
        folder = f"killed {next(tries)}"
        child = forked(lambda folder=folder: action(folder))
        time.sleep(draw.uniform(0.2, 0.9) * duration)
        if kill(child) != -signal.SIGKILL:
            duration *= 0.9  # it was faster
            continue
        number += 1
        store = tmp_path / folder / "found.csv.store"
        found.append(len(list(store.glob("*.json"))) if store.exists() else 0)
        assert not (tmp_path / folder / "found.csv").exists() or found[-1] == len(RECIPES)
        if (tmp_path / folder / "found.csv").exists():
            continue
        assert status_of(forked(lambda folder=folder: action(folder))) == 0
        assert (tmp_path / folder / "found.csv").read_bytes() == (tmp_path / "whole" / "found.csv").read_bytes()
        assert sorted(path.name for path in store.iterdir()) == stored

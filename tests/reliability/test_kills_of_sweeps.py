"""A sweep that is killed at random moments goes on, and ends with the file of one that never was."""

import random
import signal
import time
from itertools import product

from _helpers.forks import forked, kill, status_of

from lwptv_lightning.cli import main

CONFIGURATION = """
model: {class_path: _helpers.swept.plain_module}
data: {class_path: _helpers.swept.small_suite}
trainer: {logger: false, accelerator: cpu, enable_progress_bar: false}
recipes:
"""


def test_a_killed_sweep_ends_with_the_same_file(amount, tmp_path, monkeypatch):
    recipes = list(product(("task_arithmetic", "ties", "dare"), (0, 0.3, 0.6), (0.2, 0.4, 0.6, 0.8)))
    form = "  r{}: {{rule: {}, ratio: {}, scale: {}}}\n"
    lines = "".join(form.format(number, *recipe) for number, recipe in enumerate(recipes))
    (tmp_path / "all.yaml").write_text(CONFIGURATION + lines)

    def action(folder="whole"):
        monkeypatch.chdir(tmp_path)
        (tmp_path / folder).mkdir(exist_ok=True)
        assert main(["sweep", "--config", "all.yaml", "--out", f"{folder}/found.csv"]) in (0, None)

    begin = time.monotonic()
    assert status_of(forked(action)) == 0
    duration, draw, number = time.monotonic() - begin, random.Random(0), 0
    stored = sorted(path.name for path in (tmp_path / "whole" / "found.csv.store").iterdir())
    assert len(stored) == 1 + len(recipes)
    found = []
    while number < amount(2, 10):
        folder = f"killed {number}"
        child = forked(lambda folder=folder: action(folder))
        time.sleep(draw.uniform(0.2, 0.9) * duration)
        if kill(child) != -signal.SIGKILL:
            (tmp_path / folder).rename(tmp_path / f"{folder} was faster {len(found)}")
            duration *= 0.9
            continue
        number += 1
        store = tmp_path / folder / "found.csv.store"
        found.append(len(list(store.glob("*.json"))) if store.exists() else 0)
        assert not (tmp_path / folder / "found.csv").exists() or found[-1] == len(recipes)
        if (tmp_path / folder / "found.csv").exists():
            continue
        assert status_of(forked(lambda folder=folder: action(folder))) == 0
        assert (tmp_path / folder / "found.csv").read_bytes() == (tmp_path / "whole" / "found.csv").read_bytes()
        assert sorted(path.name for path in store.iterdir()) == stored

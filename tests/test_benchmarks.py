"""What the benchmarks conclude from their figures, and that they leave nothing behind; none of them is run here."""

import importlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning import TaskVectors
from lwptv_lightning.merging import save_merged

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    """``script(name)``: a module of the benchmarks."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))


@pytest.fixture
def inputs(script, tmp_path):
    for number in range(3):
        weights = {f"blocks.{block}.weight": torch.full((4, 4), 1.0 + number / 8) for block in range(2)}
        save_file(weights, tmp_path / f"{number}.safetensors")
    base, *tasks = sorted(tmp_path.iterdir())
    return script("cases").Inputs(base, {path.stem: path for path in tasks})


@pytest.mark.parametrize(
    ("measured", "at_least", "met"),
    [(4.0, False, True), (4.1, False, False), (4.0, True, True), (3.9, True, False), (math.nan, False, False)],
)
def test_a_limit_is_met_or_not(script, measured, at_least, met):
    limit = script("limits").Limit("ties", 4.0, measured, "x floor", at_least)
    assert limit.met is met
    assert limit.row()["verdict"] == ("met" if met else "NOT MET")
    assert limit.row()["limit"] == f"{'>=' if at_least else '<='} 4 x floor"


def test_every_case_with_a_limit_is_measured(script):
    cases = script("cases")
    assert set(script("limits").TIMES_FLOOR) <= set(cases.cases(cases.RULES, to_file=cases.TO_FILE))


def test_times_are_compared_with_the_floor_with_one_thread_and_with_a_quiet_machine(script):
    timing, limits = script("timing"), script("limits")
    found = timing.Timings()
    for setting, floor, ties in ((timing.QUIET, 1.0, 9.0), (timing.ONE_THREAD, 1.0, 8.0), (timing.CROWDED, 1.0, 27.0)):
        found.seconds[setting, timing.FLOOR] = [floor, 2 * floor]
        found.seconds[setting, "ties"] = [2 * ties, ties]
    ratios = {limit.what: (limit.measured, limit.met) for limit in limits.of_times(found)}
    assert ratios == {
        "quiet: ties": (9.0, False),
        "default threads: ties": (1.125, False),
        "beside a busy process: ties": (3.0, False),
    }


def test_cases_are_timed_in_turn_in_every_setting(script, inputs):
    timing = script("timing")
    threads = []
    settings = (timing.QUIET, timing.Setting(threads=3))
    usual = torch.get_num_threads()
    found = timing.time_in_turn({"case": lambda _: threads.append(torch.get_num_threads())}, inputs, 2, settings)
    assert threads == [usual, usual, 3, usual, 3]
    assert torch.get_num_threads() == usual
    assert {len(seconds) for seconds in found.seconds.values()} == {2}
    assert [row["what"] for row in timing.figures(found, inputs)] == [timing.FLOOR, "case"]


def test_reads_of_experts_are_seen_and_those_of_masked_ones_are_none(script, inputs):
    reads = script("cases").reads_of_experts(inputs, ["task_arithmetic"])
    assert reads["unpruned"] >= 4  # each tensor of each expert
    assert reads["masked"] == 0


def is_running(process):
    return Path(f"/proc/{process}").exists() and "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()


def test_a_busy_process_ends_with_its_block(script):
    def interrupted():
        with busy:
            assert is_running(busy.process.pid)
            raise KeyboardInterrupt

    busy = script("neighbour").BusyProcess()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not is_running(busy.process.pid)


def test_a_busy_process_ends_with_a_killed_parent():
    program = "import os, time; from neighbour import BusyProcess\nwith BusyProcess() as busy:\n"
    program += "    print(busy.process.pid, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(FOLDER)}) as parent:
        number = int(parent.stdout.readline())
        assert is_running(number)
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 20
    while is_running(number) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_running(number)


def test_a_sparse_model_takes_no_disk_and_its_merge_is_checked(script, tmp_path):
    large, models = script("large_model"), script("language_model")
    shapes = models.model_shapes(1, 256, head=True)
    base, *tasks = large.write_sparse(tmp_path, shapes, 2)
    weights = [models.Weights(index) for index in (base, *tasks)]
    assert sum(file.stat().st_size for file in weights[0].files) > models.total_size(shapes)
    assert sum(512 * file.stat().st_blocks for file in weights[0].files) < models.total_size(shapes) / 5
    written = save_merged(
        TaskVectors.open(base, {"a": tasks[0], "b": tasks[1]}), large.RECIPE, tmp_path / "m.safetensors"
    )
    assert large.differing(models.Weights(written), weights[0], weights[1:], shapes) == 0
    assert large.differing(weights[1], weights[0], weights[1:], shapes) > 1000

"""Many tensors, many shards, large tensors: time grows with their number, files stay few, memory small."""

import json
import subprocess
import sys
import time
import warnings

import pytest
import torch
from _helpers.processes import environment
from _helpers.states import noise
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lwptv_lightning import (
    CheckpointError,
    MergeRecipe,
    TaskVectors,
    merge,
    merge_transform,
    open_checkpoint,
    save_merged,
)
from lwptv_lightning.inspection import check, diff
from lwptv_lightning.registry import UnknownNameError, first_match, matcher, matches

# Time


class Many:
    """A model of n small tensors, as files, state dicts and modules."""

    def __init__(self, n, folder):
        generator = torch.Generator().manual_seed(0)
        self.base = {f"layers.{i // 8}.b{i % 8}.weight": torch.randn(4, 4, generator=generator) for i in range(n)}
        self.tuned = noise(self.base, 1, 0.01)
        self.files = []
        for name in ("base", "tuned"):
            save_file(getattr(self, name), folder / f"{name}{n}.safetensors")
            self.files.append(folder / f"{name}{n}.safetensors")
        self.module = nn.Module()
        blocks = (nn.ModuleDict({f"b{j}": nn.Linear(4, 4, bias=False) for j in range(8)}) for _ in range(n // 8))
        self.module.layers = nn.ModuleList(blocks)
        self.module.load_state_dict(self.base)

    def vectors(self):
        return TaskVectors.open(self.base, {"a": self.tuned})


def of_same_start(state):
    return {name: torch.cat([torch.ones(4, 4), tensor]) for name, tensor in state.items()}


def refused(many):
    half = dict(list(many.tuned.items())[::2])
    with pytest.raises(CheckpointError, match="misses tensors"):
        TaskVectors.open(many.base, {"a": half})


STEPS = {
    "files": lambda many: TaskVectors.open(many.files[0], {"a": many.files[1]}),
    "a model": lambda many: TaskVectors.open(many.base, {"a": many.tuned}, model=many.module),
    "a module as base": lambda many: TaskVectors.open(many.module, {"a": many.tuned}),
    "a prefix": lambda many: TaskVectors.open(many.base, {"a": {f"net.{n}": t for n, t in many.tuned.items()}}),
    "patterns": lambda many: TaskVectors.open(
        many.base, {"a": many.tuned}, exclude=[f"layers.{i}.b0.weight" for i in range(len(many.base) // 8)]
    ),
    "tensors of one beginning": lambda many: TaskVectors.open(
        of_same_start(many.base), {"a": of_same_start(many.tuned)}
    ),
    "half of the tensors missing": refused,
    "one more task": lambda many: many.vectors().with_task("b", many.tuned),
    "check": lambda many: check(many.base, {"a": many.tuned}),
    "diff": lambda many: diff(many.base, many.tuned, "block"),
    "a coefficient for each tensor": lambda many: merge(
        many.vectors(), {"rule": {"name": "adamerging", "coefficients": dict.fromkeys(many.base, (0.5,))}}
    ),
}


@pytest.mark.parametrize("step", STEPS)
def test_time_grows_with_the_tensors_and_not_with_their_square(step, tmp_path):
    few, many = Many(400, tmp_path), Many(1600, tmp_path)

    def seconds(model):
        began = time.process_time()
        STEPS[step](model)
        return time.process_time() - began

    seconds(few)
    ratios = []
    for _ in range(4):  # a busy machine may hold up some
        ratios.append(seconds(many) / seconds(few))
        if ratios[-1] < 8:
            return
    pytest.fail(f"four times the tensors took {ratios} times as long")


@pytest.mark.parametrize("rule", ["task_arithmetic", "fisher"])
def test_planning_and_merging_look_names_up(rule, tmp_path):
    many = Many(1600, tmp_path)
    data = {"a": {name: tensor.square() for name, tensor in many.base.items()}}
    vectors = many.vectors()
    began = time.process_time()
    merge(vectors, MergeRecipe(rule, ratio=0.5, keep=["layers.1.*"]), data=data)
    assert time.process_time() - began < 40


def test_the_transform_finds_the_layers_of_a_node():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vectors = TaskVectors.open(base, {"a": noise(base, 1)})
    graph = merge_transform(model, vectors, MergeRecipe(ratio=0.5, granularity="tensor"))
    found = {str(node.target): [entry["layer"] for entry in node.meta.get("lwptv", [])] for node in graph.graph.nodes}
    assert found["1.0"] == ["1.0.weight", "1.0.bias"]


def test_a_matcher_is_the_globs():
    names = ["a.b", "a.c", "A.b", "a[0]", "ab", "x\ny.b", "a*b", ""]
    for patterns in (["a.*"], ["a.b", "?b"], ["a[[]0]", "[!a]*"], ["*.b", "a.c", ""], []):
        assert [matcher(patterns)(name) for name in names] == [matches(name, patterns) for name in names]
        first = [next((each for each in patterns if matches(name, [each])), None) for name in names]
        assert list(map(first_match(patterns), names)) == first


def test_an_unknown_name_among_many_lists_some():
    error = UnknownNameError("tensor", "t.17O", [f"t.{i}" for i in range(5000)])
    assert "Did you mean 't.17" in str(error)
    assert "t.59 and 4940 more." in str(error)
    assert len(str(error)) < 1000


# Files

SHARDED = """
import json, os, resource, sys, warnings
from pathlib import Path
from lwptv_lightning import TaskVectors, merge, save_merged, open_checkpoint
from lwptv_lightning.inspection import check, diff
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
vectors = TaskVectors.open(folder / "base", {"a": folder / "tuned"})
merge(vectors, "ties")
check(folder / "base", {"a": folder / "tuned"})
diff(folder / "base", folder / "tuned")
written = save_merged(vectors, "task_arithmetic", folder / "merged.safetensors", max_shard_size=256)
assert len(os.listdir("/proc/self/fd")) < 20
print(len(open_checkpoint(written).names), len(list(folder.glob("merged-*"))))
"""


def test_hundreds_of_shards_need_few_open_files(tmp_path):
    base = {f"l.{i}.w": torch.randn(8, 8, generator=torch.Generator().manual_seed(i)) for i in range(150)}
    tuned = noise(base, 1, 0.01)
    for folder, state in (("base", base), ("tuned", tuned)):
        (tmp_path / folder).mkdir()
        for i, (name, tensor) in enumerate(state.items()):
            save_file({name: tensor}, tmp_path / folder / f"m-{i}.safetensors")
        index = {"weight_map": {name: f"m-{i}.safetensors" for i, name in enumerate(state)}}
        (tmp_path / folder / "model.safetensors.index.json").write_text(json.dumps(index))
    command = [sys.executable, "-c", SHARDED, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["150", "150"]
    merged = open_checkpoint(tmp_path / "merged.safetensors.index.json")
    expected = merge(TaskVectors.open(base, {"a": tuned}), "task_arithmetic")
    assert all(torch.equal(merged.read(name), tensor) for name, tensor in expected.items())
    assert not list(tmp_path.glob(".merged*"))


def test_a_failed_write_of_many_shards_leaves_nothing(tmp_path):
    base = {f"l.{i}": torch.randn(8, 8, generator=torch.Generator().manual_seed(i)) for i in range(40)}
    spoilt = noise(base, 1, 0.01)
    spoilt["l.39"][0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="NaN"):
        save_merged(
            TaskVectors.open(base, {"a": spoilt}), "task_arithmetic", tmp_path / "m.safetensors", max_shard_size=256
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_data_of_any_alignment_are_read(shift, tmp_path):
    """The format asks no writer to begin a tensor at a multiple of its elements' size."""
    tensors = {"bytes": torch.arange(shift, dtype=torch.uint8), "w": torch.randn(3, 2), "half": torch.randn(5).half()}
    entries, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.numpy().tobytes()
        code = {torch.uint8: "U8", torch.float32: "F32", torch.float16: "F16"}[tensor.dtype]
        entries[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(entries).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    with safe_open(path, "pt") as handle:
        assert set(handle.keys()) == set(tensors)
    found = open_checkpoint(path)
    assert found.names == tuple(tensors)
    assert all(torch.equal(found.read(name), tensor) for name, tensor in tensors.items())


def test_what_is_read_is_mapped_and_the_file_stays_as_it_is(tmp_path):
    save_file({"w": torch.ones(4)}, tmp_path / "w.safetensors")
    open_checkpoint(tmp_path / "w.safetensors").read("w").fill_(7)
    assert torch.equal(load_file(tmp_path / "w.safetensors")["w"], torch.ones(4))


# Memory

PEAK = """
import os, sys, threading, warnings
from pathlib import Path
import torch
torch.set_num_threads(1)
from lwptv_lightning import TaskVectors
from lwptv_lightning.inspection import check, diff
folder = Path(sys.argv[1])
tasks = {f"t{i}": folder / f"t{i}.safetensors" for i in range(4)}

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024

def peak(action):
    before, highest, done = anonymous(), [0.0], threading.Event()
    def watch():
        while not done.wait(0.002):
            highest[0] = max(highest[0], anonymous())
    watcher = threading.Thread(target=watch)
    watcher.start()
    action()
    done.set()
    watcher.join()
    return max(highest[0] - before, 0)

small = {"w": torch.ones(2)}
warnings.simplefilter("ignore")
check(small, {"a": {"w": torch.zeros(2)}}), diff(small, {"w": torch.zeros(2)})
TaskVectors.open(small, {"a": small})
base = folder / "base.safetensors"
print(peak(lambda: TaskVectors.open(base, tasks | {"same": base})))
print(peak(lambda: check(base, tasks)))
print(peak(lambda: diff(base, tasks["t0"])))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_open_check_and_diff_hold_parts_of_a_tensor(tmp_path):
    """A tensor of 64 MB in five files: whole tensors of all tasks took several hundred MB."""
    base = {"w": torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))}
    save_file(base, tmp_path / "base.safetensors")
    for i in range(4):
        save_file({"w": base["w"] + 0.001 * (i + 1)}, tmp_path / f"t{i}.safetensors")
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    peaks = dict(zip(("open", "check", "diff"), map(float, done.stdout.split()), strict=True))
    assert max(peaks.values()) < 100, peaks


def test_blocks_give_the_figures_of_whole_tensors(monkeypatch):
    base = {"w": torch.randn(70, 30, generator=torch.Generator().manual_seed(0)), "steps": torch.tensor(3)}
    tuned = noise(base, 1, 0.1) | {"steps": torch.tensor(5)}
    whole = diff(base, tuned, "tensor"), check(base, {"a": tuned})
    monkeypatch.setattr("lwptv_lightning.checkpoints.checkpoint._AT_ONCE", 64)
    monkeypatch.setattr(sys.modules["lwptv_lightning.inspection.check"], "_BLOCK_BYTES", 1024)
    (w, steps), (found,) = diff(base, tuned, "tensor"), check(base, {"a": tuned})
    assert (w.norm, w.largest) == (pytest.approx(whole[0][0].norm, rel=1e-12), whole[0][0].largest)
    assert (steps.changed, steps.largest) == (1, 0)  # it is no weight, whose change would be measured
    assert found.norm == pytest.approx(whole[1][0].norm, rel=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TaskVectors.open(base, {"a": base | {"w": base["w"] + torch.eye(70, 30)}})

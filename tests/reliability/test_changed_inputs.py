"""Inputs that are cut off, rewritten, replaced, lengthened, touched or removed while they are merged."""

import json
import os
import random
from collections import Counter

import pytest
import torch
from _helpers.forked import forked
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import CheckpointError, MergeModule, TaskVectors, merge, merge_transform, open_checkpoint
from lwptv_lightning.checkpoints import Checkpoint
from lwptv_lightning.cli import main
from lwptv_lightning.merging import read_data_statistics, save_merged, write_data_statistics
from lwptv_lightning.search import sweep

INPUTS = (
    "base.safetensors",
    "sharded/s1.safetensors",
    "sharded/s2.safetensors",
    "sharded/model.safetensors.index.json",
    "archive.pt",
    "sequence.pt",
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "fisher.safetensors",
)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with all of the inputs."""
    monkeypatch.chdir(tmp_path)
    base = model().state_dict()
    tuned = [{name: tensor + 0.1 * (1 + n) for name, tensor in base.items()} for n in range(3)]
    save_file(base, "base.safetensors")
    names = list(base)
    shards = {"s1.safetensors": names[:2], "s2.safetensors": names[2:]}
    for folder in ("sharded", "adapter"):
        os.mkdir(folder)
    for shard, part in shards.items():
        save_file({name: tuned[0][name] for name in part}, f"sharded/{shard}")
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (tmp_path / INPUTS[3]).write_text(json.dumps(index))
    torch.save(tuned[1], "archive.pt")
    torch.save(tuned[2], "sequence.pt", _use_new_zipfile_serialization=False)
    factors = {
        "base_model.model.0.lora_A.weight": torch.ones(2, 4),
        "base_model.model.0.lora_B.weight": torch.ones(64, 2),
    }
    save_file(factors, "adapter/adapter_model.safetensors")
    (tmp_path / INPUTS[7]).write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 2}))
    tasks = ("sharded", "archive", "sequence", "adapter")
    write_data_statistics({task: {name: torch.ones_like(base[name]) for name in names} for task in tasks}, INPUTS[8])
    return tmp_path


def opened():
    tasks = {"sharded": "sharded", "archive": "archive.pt", "sequence": "sequence.pt", "adapter": "adapter"}
    return TaskVectors.open("base.safetensors", tasks), read_data_statistics("fisher.safetensors")


def replaced(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


def rewritten(path):
    raw = bytearray(path.read_bytes())
    raw[-4:] = b"\0\0\0\0"
    with path.open("r+b") as file:
        file.write(raw)


CHANGES = {
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "rewritten in place": rewritten,
    "replaced": replaced,
    "lengthened": lambda path: path.open("ab").write(b"more"),
    "touched": lambda path: os.utime(path, ns=(1, 1)),
    "removed": lambda path: path.unlink(),
}


def into_memory(watched):
    vectors, data = opened()
    watched()
    merge(vectors, "fisher", data=data)


def into_a_file(watched):
    vectors, data = opened()
    watched()
    save_merged(vectors, "fisher", "out/merged.safetensors", data=data)


def into_shards(watched):
    vectors, data = opened()
    watched()
    save_merged(vectors, "fisher", "out/merged.safetensors", data=data, max_shard_size=600)


def by_the_command_line(watched):
    watched()
    tasks = ["sharded=sharded", "archive=archive.pt", "sequence=sequence.pt", "adapter=adapter"]
    options = ["--rule", "fisher", "--data-statistics", "fisher.safetensors", "--out", "out/merged.safetensors"]
    try:
        main(["merge", "base.safetensors", *tasks, *options])
    except SystemExit as error:
        raise CheckpointError(str(error.code)) from error


def same(module, before):
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items()), "half installed"


def into_a_module(watched):
    vectors, data = opened()
    module = MergeModule(model(), vectors, "fisher", data=data)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    watched()
    try:
        module.merge_()
    finally:
        if module.installed is None:
            same(module, before)


def into_a_graph(watched):
    vectors, data = opened()
    watched()
    merge_transform(model(), vectors, "fisher", data=data)


def into_a_sweep(watched):
    from lightning.pytorch import Trainer

    vectors, data = opened()
    module = MergeModule(model(), vectors, data=data)
    loader = DataLoader(TensorDataset(torch.ones(2, 4), torch.zeros(2, dtype=torch.long)))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    watched()
    sweep(Trainer(accelerator="cpu", devices=1, **quiet), module, {"fisher": "fisher"}, {"id/archive": loader})


SINKS = (into_memory, into_a_file, into_shards, into_a_module, into_a_graph, by_the_command_line, into_a_sweep)


class Watch:
    """Counts reads of tensors, and does something after one of them."""

    def __init__(self, after=None, change=lambda: None):
        self.reads, self._after, self._change = 0, after, change

    def __call__(self):
        read, read_for_difference = Checkpoint.read, Checkpoint.read_for_difference

        def counted(function):
            def inner(checkpoint, name):
                values = function(checkpoint, name)
                self.reads += 1
                if self.reads == self._after:
                    self._change()
                return values

            return inner

        Checkpoint.read, Checkpoint.read_for_difference = counted(read), counted(read_for_difference)
        if self._after == 0:
            self._change()


def reads_of(sink):
    watch = Watch()

    def body():
        sink(watch)
        return watch.reads

    return forked(body)


def outcome(sink, path, change, after):
    """Return how a merge ended of which one input was changed after some reads: refused, or killed by the system."""

    def body():
        try:
            sink(Watch(after, lambda: CHANGES[change](path)))
        except CheckpointError as error:
            return str(error)
        return "merged"

    said, ended = forked(body)
    if ended is not None:
        return ended
    named = path.name in said and ("changed while it was in use" in said or after == 0)
    return "refused" if named else said


def test_a_changed_input_is_named_and_leaves_no_result(files, amount, row):
    drawn, outcomes = random.Random(0), Counter()
    kept = {name: (files / name).read_bytes() for name in INPUTS}
    for sink in SINKS[: amount(4, len(SINKS))]:
        total, ended = reads_of(sink)
        assert ended is None, ended
        for leftover in files.glob("out/*"):
            leftover.unlink()
        cases = [(name, change) for name in INPUTS for change in CHANGES]
        first = sink is by_the_command_line  # which opens the inputs itself, as they are by then
        for name, change in drawn.sample(cases, amount(5, 40)):
            for after in sorted({total, *(drawn.randrange(first, total) for _ in range(amount(1, 2)))}):
                case = f"{sink.__name__}, {name} {change} after {after} of {total} reads"
                found = outcome(sink, files / name, change, after)
                # The system ends a process that touches what was cut off; all else is told.
                assert found == "refused" or (found == "SIGBUS" and change in ("cut in half", "emptied")), (case, found)
                outcomes[found] += 1
                left = [path.name for path in files.glob("out/*") if not path.name.startswith(".")]
                assert left == [], (case, left)
                (files / name).write_bytes(kept[name])
    tried = f"{outcomes.total()} inputs changed during merges, by {amount(4, len(SINKS))} ways to hold the result"
    killed = f"{outcomes['SIGBUS']} ended by the system when it was cut off in that moment"
    row(tried, f"{outcomes['refused']} refused by the file's name, {killed}; no result left, no module half filled")


def test_a_file_that_is_rewritten_when_the_merge_is_complete(files):
    vectors, data = opened()
    before = merge(vectors, "fisher", data=data)
    save_merged(vectors, "fisher", "out/merged.safetensors", data=data)
    replaced_state = {name: tensor + 1 for name, tensor in load_file("base.safetensors").items()}
    save_file(replaced_state, "base.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file("out/merged.safetensors").items())
    with pytest.raises(CheckpointError, match=r"base\.safetensors: changed while it was in use"):
        merge(vectors, "fisher", data=data)
    assert torch.equal(open_checkpoint("base.safetensors").read("0.bias"), replaced_state["0.bias"])


def test_weights_that_are_held_need_their_files_no_more(files):
    vectors, _ = opened()
    held = vectors.load()
    expected = merge(vectors, "task_arithmetic")
    for name in INPUTS[:-1]:
        os.utime(name, ns=(1, 1))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merge(held, "task_arithmetic").items())

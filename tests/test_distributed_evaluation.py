"""Evaluation on two processes, against the same on one; run as a script, this file is what each process does."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, PruneAndMerge, TaskVectors, merge

SIZES = (1, 2, 5, 7, 33)
RECIPE = MergeRecipe("ties", ratio=0.5)
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def draw_tasks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    tasks = {
        task: {name: tensor + 0.5 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
        for task in "ab"
    }
    return model, TaskVectors.open(model, tasks)


def draw_loaders():
    torch.manual_seed(1)
    return {
        f"{domain}/{size}": DataLoader(TensorDataset(torch.randn(size, 6), torch.randint(4, (size,))), batch_size=3)
        for size in SIZES
        for domain in ("id", "ood")
    }


class Foreign(LightningModule):
    """Records whether it sees the merged weights."""

    def __init__(self, net, merged):
        super().__init__()
        self.net = net
        self.merged = merged
        self.saw_merged = []

    def validation_step(self, batch, batch_idx):
        self.saw_merged.append(all(torch.equal(t, self.merged[n]) for n, t in self.net.state_dict().items()))


def evaluate(**devices):
    """Return what a process finds: figures of two stages, its own weights, and what a foreign module saw."""
    model, vectors = draw_tasks()
    module = MergeModule(model, vectors, RECIPE, expert_accuracy={str(size): 0.5 for size in SIZES})
    figures = {
        stage: getattr(Trainer(**QUIET, **devices), stage)(module, draw_loaders(), verbose=False)
        for stage in ("validate", "test")
    }
    net, _ = draw_tasks()
    foreign = Foreign(net, merge(vectors, RECIPE))
    trainer = Trainer(**QUIET, **devices, callbacks=[PruneAndMerge(vectors, RECIPE)])
    trainer.validate(foreign, draw_loaders()["id/7"], verbose=False)
    return {
        "figures": figures,
        "weights": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "saw_merged": foreign.saw_merged,
        "restored": all(torch.equal(t, vectors.base(n)) for n, t in foreign.net.state_dict().items()),
    }


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    found = evaluate(devices=2, strategy="ddp")
    (Path(sys.argv[1]) / f"{os.environ.get('LOCAL_RANK', 0)}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "MASTER_PORT")}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(
        command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def one_process():
    return evaluate(devices=1)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_figures_are_exactly_those_of_one_process(stage, both_processes, one_process):
    expected = one_process["figures"][stage]
    assert {f"id/{size}" for size in SIZES} < {name for entry in expected for name in entry}
    assert len({entry[f"id/{size}"] for entry, size in zip(expected[::2], SIZES, strict=True)}) > 2
    for process in both_processes:
        assert process["figures"][stage] == expected


def test_every_process_merges_the_same_weights(both_processes, one_process):
    for process in both_processes:
        assert process["weights"] == one_process["weights"]


def test_a_foreign_module_is_merged_and_restored_on_every_process(both_processes):
    for process in both_processes:
        assert process["saw_merged"] == [True, True]
        assert process["restored"]

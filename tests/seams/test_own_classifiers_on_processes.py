"""Heads in the place of a classifier on two processes, divided, sharded or tensor parallel, against one process."""

import os
import sys
import warnings

import pytest
import torch
from _helpers.processes import launch, report
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, TaskVectors

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
CLASSES = {"a": 3, "b": 6}


class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.fc = nn.Linear(8, classes)

    def forward(self, inputs):
        return self.fc(self.stem(inputs).relu())


def build_plain(mesh):
    torch.manual_seed(0)
    return Net()


def build_sharded(mesh):
    model = build_plain(mesh)
    if mesh is not None:
        for part in (model.stem, model.fc, model):
            fully_shard(part, mesh=mesh["data_parallel"])
    return model


def build_tensor_parallel(mesh):
    model = build_plain(mesh)
    if mesh is not None:
        plan = {"stem.0": ColwiseParallel(), "stem.2": RowwiseParallel(), "fc": ColwiseParallel()}
        parallelize_module(model, mesh["tensor_parallel"], plan)
    return model


def evaluate(build, **options):
    torch.manual_seed(1)
    experts = {task: Net(classes) for task, classes in CLASSES.items()}
    module = MergeModule(build, TaskVectors.open(build_plain(None), experts, model=Net()), heads={"far": "b"})
    loaders = {
        name: DataLoader(TensorDataset(torch.randn(count, 6), torch.arange(count) % CLASSES[own]), batch_size=4)
        for name, own, count in (("id/a", "a", 14), ("id/b", "b", 9), ("ood/far", "b", 7))
    }
    found = Trainer(**QUIET, enable_model_summary=False, **options).validate(module, loaders, verbose=False)
    return {name: figure for result in found for name, figure in result.items()}


def everything():
    return {
        "divided": evaluate(build_plain, devices=2, strategy="ddp"),
        "sharded": evaluate(build_sharded, devices=2, strategy=ModelParallelStrategy(2, 1)),
        "tensor parallel": evaluate(build_tensor_parallel, devices=2, strategy=ModelParallelStrategy(1, 2)),
    }


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    report(sys.argv[1], os.environ["LOCAL_RANK"], everything())
    torch.distributed.destroy_process_group()


def test_figures_are_those_of_one_process(tmp_path):
    expected = evaluate(build_plain, devices=1)
    assert len({expected[name] for name in ("id/a", "id/b", "ood/far")}) == 3
    for found in launch(__file__, tmp_path, ranks=2):
        for way, figures in found.items():
            assert figures == pytest.approx(expected), way

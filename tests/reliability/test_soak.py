"""One process that merges and validates for long: it grows in neither memory, nor handles, nor threads, nor maps."""

import ctypes
import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from _helpers.states import noise
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, merge, open_checkpoint, save_merged
from lwptv_lightning.inspection import check
from lwptv_lightning.search import sweep

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system has no /proc")
MOST = 50 * 1024
"""Bytes by which a process may grow with each merge or validation."""
RECIPE = MergeRecipe("ties", ratio=0.5)
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", lambda size: None)  # what is free and still mapped is no growth


def settled():
    """The bytes of memory that the process has when nothing is left to collect, or to give back."""
    gc.collect()
    TRIM(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(sizes):
    """The median of the slopes between any two of them, which a single step does not move."""
    first, second = np.triu_indices(len(sizes), 1)
    return float(np.median((np.array(sizes)[second] - np.array(sizes)[first]) / (second - first)))


def held():
    """What must stay the same: handles, threads and mapped files."""
    mapped = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line]
    return len(os.listdir("/proc/self/fd")), threading.active_count(), sorted(mapped)


def make_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The base, two experts, and one as a torch file."""
    folder, state = tmp_path_factory.mktemp("soak"), make_net().state_dict()
    paths = [folder / f"{name}.safetensors" for name in ("base", "a", "b")]
    for seed, path in enumerate(paths):
        save_file(noise(state, seed) if seed else state, path)
    torch.save(noise(state, 3), folder / "c.pt")
    return [*paths, folder / "c.pt"]


def opened(files):
    base, a, b, c = files
    return TaskVectors.open(base, {"a": a, "b": b, "c": c})


def loaders():
    inputs = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    return {name: DataLoader(TensorDataset(inputs, torch.arange(12) % 4), batch_size=4) for name in ("id/a", "ood/x")}


def merges(files, make_trainer, folder):
    return lambda: merge(opened(files), RECIPE)


def saves(files, make_trainer, folder):
    return lambda: save_merged(opened(files), RECIPE, folder / "merged.safetensors")


def checks(files, make_trainer, folder):
    def act():
        checkpoint = open_checkpoint(files[3])
        assert all(checkpoint.read(name).isfinite().all() for name in checkpoint.headers)
        check(files[0], {"a": files[1], "c": files[3]})

    return act


def validates(files, make_trainer, folder):
    def act():
        module = MergeModule(make_net(), opened(files), RECIPE)
        make_trainer().validate(module, loaders(), verbose=False)

    return act


def validates_again(files, make_trainer, folder):
    module, trainer = MergeModule(make_net(), opened(files), RECIPE), make_trainer()
    return lambda: trainer.validate(module, loaders(), verbose=False)


def sweeps(files, make_trainer, folder):
    module = MergeModule(make_net(), opened(files), RECIPE)
    candidates = {"ties": RECIPE, "half": {"rule": "task_arithmetic", "scale": 0.5}}
    return lambda: sweep(make_trainer(), module, candidates, loaders())


WORK = [merges, saves, checks, validates, validates_again, sweeps]


@pytest.fixture
def _frozen():
    """What is there before is not looked through at each collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_frozen")
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_a_long_run_does_not_grow(work, amount, row, files, make_trainer, tmp_path):
    times = amount(20, 500)
    act = work(files, make_trainer, tmp_path)
    for _ in range(10):  # what is imported, compiled and pooled once
        act()
    before, sizes = (settled(), held())[1], []
    for number in range(times):
        act()
        if number >= times // 2:
            sizes.append(settled())
    slope = growth(sizes)
    assert slope < MOST, f"grows by {slope / 1024:.1f} KB each time"
    assert held() == before
    row(
        f"{work.__name__.replace('_', ' ')} {times} times in one process",
        f"{max(slope, 0) / 1024:.1f} KB more each time; handles, threads and mapped files stay the same",
    )

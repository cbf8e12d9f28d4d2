"""LayerGates on two processes learns what one does, whatever divides the samples."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from _helpers.gated import gated_module, loaders
from _helpers.processes import launch, report
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset

from lwptv_lightning import LayerGates


class Drawn(Dataset):
    """Images that are drawn anew whenever they are read."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return torch.randn(1, 4, 4)


def fit(devices=1, given=None, **options):
    gates = LayerGates(gated_module(max_memory="1GB"), images=11, batch_size=7, **options)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(gates, given or loaders(size=13, batch_size=4))
    return gates


def run(folder, rank):
    torch.manual_seed(rank)  # so that what is drawn differs between the processes
    drawn = {name: DataLoader(Drawn(), 4) for name in loaders()}
    found = {
        "plain": fit(2).coefficients.tolist(),
        "shuffled": fit(2, loaders(size=13, shuffle=True)).coefficients.tolist(),
        "drawn": fit(2, drawn).coefficients.tolist(),
    }
    try:
        fit(2, {**loaders(), "id/c": []})
    except ValueError as error:
        found["error"] = str(error)
    report(folder, rank, found)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    return launch(__file__, tmp_path_factory.mktemp("gates"), ranks=2)


@pytest.mark.parametrize("shuffle", [False, True])
def test_two_processes_learn_what_one_does(processes, shuffle):
    own = fit(given=loaders(size=13, shuffle=shuffle)).coefficients.detach()
    first, second = (each["shuffled" if shuffle else "plain"] for each in processes)
    assert first == second
    torch.testing.assert_close(torch.tensor(first), own, atol=1e-5, rtol=1e-4)


def test_what_is_drawn_anew_is_the_same_on_both(processes):
    first, second = processes
    assert first["drawn"] == second["drawn"] != first["plain"]


def test_both_stop_where_one_has_nothing_to_read(processes):
    assert all("'id/c' gives no sample" in each["error"] for each in processes)


if __name__ == "__main__":
    import os

    warnings.filterwarnings("ignore", module="lightning.*")
    run(Path(sys.argv[1]), int(os.environ["RANK"]))

"""Sweeps on two processes, with one store; run as a script, this file is what each process does."""

import os
import sys
from pathlib import Path

import pytest
import torch
from _helpers.processes import launch, report
from _helpers.swept import small_loaders, small_module, small_samples
from lightning.pytorch import Trainer

from lwptv_lightning import MergeRecipe
from lwptv_lightning.search import Gates, sweep

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
FEW = {
    "sum": MergeRecipe("task_arithmetic"),
    "own": dict(small_module().model.state_dict()),
    "pruned": MergeRecipe("ties", ratio=0.5),
}
ALL = FEW | {
    "fisher": MergeRecipe("fisher"),
    "gates": Gates(rule="task_arithmetic", steps=2, images=8),
    "half gates": Gates(rule="task_arithmetic", steps=2, images=8, scale=0.5),
}


def swept(candidates, store, devices=1, **options):
    trainer = Trainer(devices=devices, strategy="ddp" if devices > 1 else "auto", enable_checkpointing=False, **QUIET)
    given = {"samples": small_samples(), "recalibrate": True, "at_once": 2, "store": store} | options
    found = sweep(trainer, small_module(), candidates, small_loaders(), **given)
    return {
        name: {loader: right.int().tolist() for loader, right in found.correct(name).items()} for name in candidates
    }


def ran_here(folder):
    rank, store = int(os.environ["RANK"]), folder / "store"
    found = {
        "none": swept(ALL, None, 2),
        "few": swept(FEW, store, 2),
        "all": swept(ALL, store, 2),
    }
    steps = []
    measured = torch.nn.Linear.forward
    torch.nn.Linear.forward = lambda *given: steps.append(1) or measured(*given)
    found["again"] = swept(ALL, store, 2)
    torch.nn.Linear.forward = measured
    refused = ""
    try:
        (folder / "file").write_text("")
        swept(FEW, folder / "file", 2)
    except OSError as error:
        refused = str(error)
    report(folder, rank, found | {"ran again": len(steps), "refused": refused})


if __name__ == "__main__":
    ran_here(Path(sys.argv[1]))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return launch(__file__, folder, ranks=2), folder


def test_two_processes_find_what_one_finds_and_go_on_together(found, tmp_path):
    (first, second), folder = found
    alone = swept(ALL, tmp_path / "store")
    for rank in (first, second):
        assert rank["all"] == rank["none"] == rank["again"]
        assert rank["few"] == {name: alone[name] for name in FEW}
        assert {name: rank["all"][name] for name in (*FEW, "fisher")} == {
            name: alone[name] for name in (*FEW, "fisher")
        }
        assert rank["ran again"] == 0
    assert len(list((folder / "store").glob("*-*.json"))) == len(ALL)
    assert not [path for path in (folder / "store").iterdir() if path.name.endswith((".tmp", ".lock"))]


def test_one_process_goes_on_with_what_two_measured(found):
    (first, _), folder = found
    before = {path.name: path.read_bytes() for path in (folder / "store").iterdir()}
    assert swept(ALL, folder / "store") == first["all"]
    assert {path.name: path.read_bytes() for path in (folder / "store").iterdir()} == before


def test_a_store_that_cannot_be_written_is_told_to_all(found):
    assert all("is no folder" in rank["refused"] for rank in found[0])

"""A search on two processes finds what one does, and the first one writes."""

import sys
from pathlib import Path

import pytest
from _helpers.processes import launch, report
from _helpers.swept import small_loader, small_module, small_samples
from lightning.pytorch import Trainer

from lwptv_lightning import tune
from lwptv_lightning.search import install_chosen_

SPACE = {"rules": ["task_arithmetic", "ties"], "scores": ["mean_abs"], "ratios": [0.5], "gates": False}


def search(folder, devices=1, **options):
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = small_module()
    test = {name: small_loader(name, size, 9) for name, size in (("id/a", 31), ("ood/far", 17))}
    found = tune(trainer, module, small_samples(), test, space=SPACE, masks=2, store=folder, **options)
    install_chosen_(module, found)
    total = sum(float(tensor.double().sum()) for tensor in module.model.state_dict().values())
    figures = {name: found.test.figures(name) for name in found.test.names}
    return {"chosen": found.chosen, "recipe": found.recipe.to_dict(), "figures": figures, "weights": total}


GIVEN = {"grid": {"budget": 40}, "halving": {"budget": 12}, "time": {"budget": "1h", "strategy": "random"}}


def run(folder, rank):
    found = {name: search(Path(folder) / name, 2, **given) for name, given in GIVEN.items()}
    found["again"] = search(Path(folder) / "grid", 2, budget=40)
    report(folder, rank, found)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    return launch(__file__, tmp_path_factory.mktemp("tune"), ranks=2)


@pytest.mark.parametrize("name", GIVEN)
def test_two_processes_find_what_one_does(name, processes, tmp_path):
    first, second = (each[name] for each in processes)
    assert first == second
    alone = search(tmp_path, **GIVEN[name])
    assert (first["chosen"], first["recipe"]) == (alone["chosen"], alone["recipe"])
    assert first["figures"] == alone["figures"]
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-6)


def test_what_was_found_is_read_on_both(processes):
    for each in processes:
        assert each["again"] == each["grid"]


if __name__ == "__main__":
    import os

    run(sys.argv[1], int(os.environ["RANK"]))

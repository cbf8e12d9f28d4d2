import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning.cli.found_models import find_models
from lwptv_lightning.registry import ConfigurationError


def save(folder, *names, seeds=None):
    for number, name in enumerate(names):
        drawn = torch.Generator().manual_seed(number)
        change = 0.1 * torch.randn(30, 30, generator=drawn) if number else torch.zeros(30, 30)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {"a.weight": torch.ones(30, 30) + change, "fc.weight": torch.ones(2 + number, 30)}
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
        if path.name == "model.safetensors":
            (path.parent / "config.json").write_text("{}")


NAMES = {
    "files": (["base.safetensors", "cats.safetensors", "dogs.pt"], ["cats", "dogs"]),
    "common words": (["r18_pretrained_v1.pt", "r18_cats_ft_v1.pt", "r18_wild dogs_ft_v1.pt"], ["cats", "wild dogs"]),
    "folders": (
        ["base/model.safetensors", "cats.v1/model.safetensors", "dogs.v2/model.safetensors"],
        ["cats.v1", "dogs.v2"],
    ),
    "runs": (["init.ckpt", "cats/last.ckpt", "dogs/last.ckpt"], ["cats", "dogs"]),
    "epochs": (["base.pt", "cats-epoch=3-step=40.ckpt", "dogs-epoch=12-step=9.ckpt"], ["cats", "dogs"]),
    "endings of words": (["base.pt", "supermodel.pt", "breakfast.pt"], ["breakfast", "supermodel"]),
    "by distance": (["aaa.pt", "cats.pt", "dogs.pt"], ["cats", "dogs"]),
    "a run's folders": (
        ["zeroshot.ckpt"]
        + [
            f"lightning_logs/{task}/version_{number}/checkpoints/{name}.ckpt"
            for number, task in enumerate(("cats", "dogs"))
            for name in ("epoch=1-step=9", "epoch=2-step=18", "last")
        ],
        ["cats", "dogs"],
    ),
    "runs of one task": (
        ["base.pt", "runs/cats/version_0/checkpoints/last.ckpt", "runs/cats/version_1/checkpoints/last.ckpt"],
        ["0", "1"],
    ),
    "a run of one task": (["base.pt", "runs/cats/version_0/checkpoints/last.ckpt"], ["cats"]),
    "models of one folder": (["base.pt", "model.pt", "cats/model.pt"], ["cats_model", "model"]),
    "one": (["vit_base_zeroshot.pt", "vit_base_cats.pt"], ["cats"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_base_and_tasks_are_known(case, tmp_path):
    names, tasks = NAMES[case]
    save(tmp_path, *names)
    found = find_models(tmp_path, None)
    assert found.base in (tmp_path / names[0], (tmp_path / names[0]).parent)
    assert sorted(found.tasks) == tasks


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["epoch=2-step=9.pt", "epoch=10-step=45.pt"], "epoch=10-step=45.pt"),
        (["last.pt", "best.pt", "epoch=1.pt"], "best.pt"),
        (["last.pt", "last-v1.pt"], "last-v1.pt"),
        (["cats-epoch=1.pt", "cats-epoch=2.pt"], "cats-epoch=2.pt"),
        (["checkpoint-900/model.safetensors", "checkpoint-1000/model.safetensors"], "checkpoint-1000"),
    ],
)
def test_one_checkpoint_of_a_run_is_taken(names, kept, tmp_path):
    save(tmp_path, "base.pt", *(f"cats/{name}" for name in names), "dogs/last.pt")
    found = find_models(tmp_path, None)
    assert found.tasks == {"cats": tmp_path / "cats" / kept, "dogs": tmp_path / "dogs/last.pt"}
    assert {*found.left_out.values()} == {f"of the same run as {kept}, which is taken"}
    assert len(found.left_out) == len(names) - 1


def test_a_base_that_is_said_is_not_left_out_with_its_run(tmp_path):
    save(tmp_path, "run/epoch=0.pt", "run/epoch=1.pt", "run/last.pt")
    found = find_models(tmp_path, "run/epoch=0.pt")
    assert (found.base.name, [path.name for path in found.tasks.values()]) == ("epoch=0.pt", ["last.pt"])


def test_what_is_no_expert_is_left_out_with_its_reason(tmp_path):
    save(tmp_path, "base.safetensors", "cats.safetensors")
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    save_file({"x": torch.zeros(3)}, tmp_path / "merged.heads.safetensors")
    found = find_models(tmp_path, None)
    assert {path.name: why.partition(":")[0].rpartition("/")[2] for path, why in found.left_out.items()} == {
        "broken.pt": "broken.pt",
        "other.safetensors": "it shares 0 of 1 tensors with the base",
    }


def test_the_base_may_be_said(tmp_path):
    save(tmp_path, "x.pt", "y.pt")
    with pytest.raises(ConfigurationError, match=r"^--base: it cannot be told .*; say one of x.pt, y.pt"):
        find_models(tmp_path, None)
    for said in ("x", "x.pt", str(tmp_path / "x.pt")):
        assert list(find_models(tmp_path, said).tasks) == ["y"]
    with pytest.raises(ConfigurationError, match="there is no checkpoint 'xx.pt' .* Did you mean 'x.pt'"):
        find_models(tmp_path, "xx.pt")


def test_too_few_checkpoints_are_refused(tmp_path):
    save(tmp_path, "x.pt")
    with pytest.raises(ConfigurationError, match="too few checkpoints: .*found x.pt"):
        find_models(tmp_path, None)
    save_file({"other": torch.zeros(3)}, tmp_path / "base.safetensors")
    with pytest.raises(ConfigurationError, match="no other checkpoint is of the architecture"):
        find_models(tmp_path, None)

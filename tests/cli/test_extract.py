"""``lwptv extract`` and ``lwptv merge --as-lora``, run in this process."""

import json

import pytest
import torch
from _helpers.lora_out import every_kind, largest_difference, tuned, with_peft
from safetensors.torch import load_file, save_file
from torch import nn

from lwptv_lightning import TaskVectors, merge
from lwptv_lightning.cli import main


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4))


@pytest.fixture
def files(tmp_path, model):
    state = dict(model.state_dict())
    save_file(state, tmp_path / "base.safetensors")
    for seed, task in enumerate("ab"):
        save_file(tuned(state, seed), tmp_path / f"{task}.safetensors")
    return tmp_path


def run_merge(files, *options):
    tasks = [f"{task}={files / task}.safetensors" for task in "ab"]
    main(["merge", str(files / "base.safetensors"), *tasks, *options])


def run_extract(files, *options):
    main(["extract", str(files / "base.safetensors"), str(files / "a.safetensors"), *options])


def test_merged_as_lora_at_full_rank_is_the_dense_merge(files, model, capsys):
    options = ["--rule", "ties", "--scale", "0.7"]
    run_merge(files, *options, "--as-lora", "full", "--out", str(files / "adapter"))
    printed = capsys.readouterr().out
    assert "0.weight" in printed
    assert "Relative error of all that changed:" in printed
    assert "Held whole, as modules of the adapter: 1." in printed
    assert f"The adapter stands in {files / 'adapter'}" in printed.replace("\n", "")
    run_merge(files, *options, "--out", str(files / "dense.safetensors"))
    pytest.importorskip("peft")
    merged = with_peft(model, files / "adapter").merge_and_unload()
    assert largest_difference(merged.state_dict(), load_file(files / "dense.safetensors")) < 1e-6


def test_extract_writes_what_fine_tuning_changed(files, model, capsys):
    run_extract(files, "--rank", "full", "--out", str(files / "adapter"))
    assert "the worst layer is" in capsys.readouterr().out
    pytest.importorskip("peft")
    merged = with_peft(model, files / "adapter").merge_and_unload()
    assert largest_difference(merged.state_dict(), load_file(files / "a.safetensors")) < 1e-6


def test_extract_at_a_rank_tells_the_error_of_each_layer(files, capsys):
    run_extract(files, "--rank", "2", "--out", str(files / "adapter"), "--factor-dtype", "bfloat16")
    told = json.loads((files / "adapter/lwptv_adapter.json").read_text())
    assert [layer["rank"] for layer in told["layers"]] == [2, 2]
    printed = capsys.readouterr().out
    for layer in told["layers"]:
        assert layer["name"] in printed
        assert f"{layer['error']:.3g}" in printed
    factors = load_file(files / "adapter/adapter_model.safetensors")
    assert {tensor.dtype for name, tensor in factors.items() if ".lora_" in name} == {torch.bfloat16}


@pytest.mark.parametrize("run", [run_extract, run_merge])
def test_wrong_arguments_are_one_line_before_anything_is_read(run, files):
    (files / "a.safetensors").write_bytes(b"broken")
    rank = "--rank" if run is run_extract else "--as-lora"
    for value in ("0", "1.5", "many"):
        with pytest.raises(SystemExit, match=f"or 'full', not '{value}'."):
            run(files, rank, value, "--out", str(files / "adapter"))
    (files / "full").mkdir()
    (files / "full/x").touch()
    with pytest.raises(SystemExit, match=r"--out .*full exists"):
        run(files, rank, "1", "--out", str(files / "full"))
    assert [path.name for path in (files / "full").iterdir()] == ["x"]


def test_what_an_adapter_cannot_hold_is_named_with_the_option_that_drops_it(tmp_path, capsys):
    timm = pytest.importorskip("timm")
    base = dict(timm.create_model("test_vit", num_classes=3).state_dict()) | {"strange": torch.zeros(2)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned(base, 1), tmp_path / "a.safetensors")
    options = ["--rank", "1", "--out", str(tmp_path / "x"), "--model", "test_vit", "--model-option", "num_classes=3"]
    with pytest.raises(SystemExit, match=r"cannot hold what changed in strange\. .*--drop-rest"):
        run_extract(tmp_path, *options)
    run_extract(tmp_path, *options, "--drop-rest")
    assert "Dropped: strange (" in capsys.readouterr().out


def test_options_of_a_merge_hold_for_an_adapter(files):
    options = ["--as-lora", "full", "--device", "cpu", "--max-memory", "1GB", "--exclude", "2.*"]
    run_merge(files, *options, "--out", str(files / "adapter"))
    assert not any(".2." in name for name in load_file(files / "adapter/adapter_model.safetensors"))
    run_merge(files, *options, "--out", str(files / "adapter"), "--overwrite")


def test_a_model_in_a_folder_with_its_configuration_is_told_by_it(tmp_path, capsys):
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_resnet", num_classes=3)
    folder = tmp_path / "base"
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    save_file(tuned(dict(model.state_dict()), 1), tmp_path / "a.safetensors")
    main(["extract", str(folder), str(tmp_path / "a.safetensors"), "--rank", "2", "--out", str(tmp_path / "adapter")])
    assert "conv" in capsys.readouterr().out
    assert json.loads((tmp_path / "adapter/lwptv_adapter.json").read_text())["told_by"] == "model"


def test_the_adapter_is_what_the_library_merges(files, model):
    net, _ = every_kind()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    save_file(state, files / "base.safetensors")
    save_file(tuned(state, 1), files / "a.safetensors")
    run_extract(files, "--rank", "full", "--out", str(files / "adapter"))
    pytest.importorskip("peft")
    merged = with_peft(net, files / "adapter").merge_and_unload()
    dense = merge(TaskVectors.open(state, {"a": tuned(state, 1)}), {"rule": "task_arithmetic", "scale": 1.0})
    assert largest_difference(merged.state_dict(), dense) < 1e-6


@pytest.mark.parametrize("options", [["--drop-rest"], ["--factor-dtype", "float16"]])
def test_options_of_an_adapter_need_one(options, files):
    with pytest.raises(SystemExit, match=f"{options[0]} is of an adapter, and needs --as-lora"):
        run_merge(files, *options, "--out", str(files / "merged.safetensors"))


@pytest.mark.parametrize("run", [run_extract, run_merge])
def test_an_adapter_is_no_file(run, files):
    rank = "--rank" if run is run_extract else "--as-lora"
    with pytest.raises(SystemExit, match=r"written to a folder, not to a file such as '.*adapter\.safetensors'"):
        run(files, rank, "1", "--out", str(files / "adapter.safetensors"))


def test_a_classifier_of_another_size_is_said_to_be_left_out(tmp_path, capsys):
    timm = pytest.importorskip("timm")
    for name, classes in (("base", 3), ("a", 7)):
        save_file(
            dict(timm.create_model("test_vit", num_classes=classes).state_dict()), tmp_path / f"{name}.safetensors"
        )
    base = load_file(tmp_path / "base.safetensors")
    expert = load_file(tmp_path / "a.safetensors")
    heads = {name: tensor for name, tensor in expert.items() if name.startswith("head.")}
    save_file({**tuned(base, 1), **heads}, tmp_path / "a.safetensors")
    options = ["--model", "test_vit", "--model-option", "num_classes=3"]
    run_extract(tmp_path, "--rank", "1", "--out", str(tmp_path / "adapter"), *options)
    assert "Not in it, since it was not merged: head.*." in capsys.readouterr().out

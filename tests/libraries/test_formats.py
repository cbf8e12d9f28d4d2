import json

import pytest
import timm
import torch
from _helpers.library_folders import make_transformers, save_base, tuned, vectors_of
from huggingface_hub import constants

from lwptv_lightning import MergeRecipe, TaskVectors, open_checkpoint, save_merged
from lwptv_lightning.checkpoints import write_safetensors
from lwptv_lightning.libraries import FORMATS, FolderError, plan_folder
from lwptv_lightning.registry import UnknownNameError

RECIPE = MergeRecipe(scale=0.5)
PLAIN = {"a.weight": torch.ones(2, 2)}


def test_a_file_by_itself_gives_a_folder_of_weights(tmp_path):
    file = write_safetensors(PLAIN, tmp_path / "base.safetensors", {})
    (tmp_path / "config.json").write_text('{"api_key": "SECRET"}')  # of nobody's library
    vectors = TaskVectors.open(file, {"a": {"a.weight": torch.zeros(2, 2)}})
    out = save_merged(vectors, RECIPE, tmp_path / "out")
    assert {each.name for each in out.iterdir()} == {"README.md", "model.safetensors"}
    assert open_checkpoint(out).read("a.weight").tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_a_file_by_itself_and_a_model_of_timm_give_a_timm_folder(tmp_path):
    model = timm.create_model("resnet10t", num_classes=2)
    torch.save(model.state_dict(), tmp_path / "base.pt")
    vectors = TaskVectors.open(tmp_path / "base.pt", {"a": tuned(model, 1)}, model=model)
    out = save_merged(vectors, RECIPE, tmp_path / "out")
    assert timm.create_model(f"local-dir:{out}", pretrained=True).num_classes == 2


def test_weights_of_another_library_in_timms_names_give_a_timm_folder(tmp_path):
    if not hasattr(timm.create_model("resnet10t"), "_model_args"):
        pytest.skip("this version of timm does not tell how a model of other sizes is built")
    clip = make_transformers("clip")
    save_base(clip, tmp_path / "base")
    model = timm.create_model(
        "vit_base_patch16_clip_quickgelu_224",
        img_size=32,
        embed_dim=32,
        depth=1,
        num_heads=2,
        mlp_ratio=2,
        num_classes=16,
    )
    vectors = TaskVectors.open(tmp_path / "base", {"a": tuned(clip, 1)}, model=model)
    out = save_merged(vectors, RECIPE, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["architecture"] == "vit_base_patch16_clip_quickgelu_224"
    assert "preprocessor_config.json" in {each.name for each in out.iterdir()}
    with pytest.raises(FolderError, match=r"no transformers folder.*named as timm names them; leave model=\.\.\. out"):
        save_merged(vectors, RECIPE, tmp_path / "other", format="transformers")


def test_a_format_that_is_none_is_named_with_the_nearest(tmp_path):
    vectors = TaskVectors.open(PLAIN, {"a": {"a.weight": torch.zeros(2, 2)}})
    with pytest.raises(UnknownNameError, match="timn.*Did you mean 'timm'"):
        save_merged(vectors, RECIPE, tmp_path / "out", format="timn")
    with pytest.raises(TypeError, match="format must be one of timm, transformers"):
        save_merged(vectors, RECIPE, tmp_path / "out", format=3)
    with pytest.raises(ValueError, match="format='dcp' is a folder's"):
        save_merged(vectors, RECIPE, tmp_path / "out.safetensors", format="dcp")
    assert not list(tmp_path.iterdir())


def test_a_library_that_knows_nothing_of_a_model_is_refused_and_what_can_be_made_is_named(tmp_path):
    vectors = TaskVectors.open(PLAIN, {"a": {"a.weight": torch.zeros(2, 2)}})
    for kind in ("timm", "transformers", "open_clip"):
        with pytest.raises(FolderError, match=rf"no {kind} folder can be made.*Possible: format='safetensors'"):
            save_merged(vectors, RECIPE, tmp_path / "out", format=kind)
    bert = vectors_of(make_transformers("bert"), tmp_path / "base")
    with pytest.raises(FolderError, match=r"Possible: format='transformers', or 'safetensors'"):
        save_merged(bert, RECIPE, tmp_path / "out", format="timm")


def test_every_format_is_planned_or_refused():
    origin = open_checkpoint(PLAIN)
    made = set()
    for kind in FORMATS:
        try:
            made.add(plan_folder(origin, origin.headers, kind).library)
        except FolderError:
            continue
    assert made == {"safetensors", "dcp"}


def test_a_base_of_the_hub_that_cannot_be_asked_is_said(tmp_path, monkeypatch):
    folder = tmp_path / "models--owner--model" / "snapshots" / "abc"
    write_safetensors(PLAIN, folder / "model.safetensors", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    origin = open_checkpoint(folder)
    assert "The hub could not be asked" in plan_folder(origin, origin.headers).notes[-1]


def test_a_classifier_that_is_left_out_can_be_kept_where_timm_has_no_model_without_it(tmp_path):
    model = timm.create_model("levit_128s", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "base.pt")
    own = timm.create_model("levit_128s", num_classes=5).state_dict()
    state = {name: value if value.shape == own[name].shape else own[name] for name, value in tuned(model, 1).items()}
    vectors = TaskVectors.open(tmp_path / "base.pt", {"a": state}, model=model)
    with pytest.raises(FolderError, match=r"head\.bn.* keep_classifier=True writes the base's classifier"):
        save_merged(vectors, RECIPE, tmp_path / "out")
    with pytest.raises(FolderError, match="open_clip") as caught:
        save_merged(vectors, RECIPE, tmp_path / "out", format="open_clip")
    assert "keep_classifier" not in str(caught.value)
    out = save_merged(vectors, RECIPE, tmp_path / "out", keep_classifier=True)
    assert timm.create_model(f"local-dir:{out}", pretrained=True).num_classes == 3

import json

import pytest
import timm
import torch

from lwptv_lightning import open_checkpoint
from lwptv_lightning.cli.found_architecture import find_model
from lwptv_lightning.registry import ConfigurationError


@pytest.fixture(autouse=True)
def few_models(monkeypatch):
    known = ["test_vit", "test_resnet", "resnet18", "resnetblur18"]
    monkeypatch.setattr(timm, "list_models", lambda: known)


def saved(path, name="test_resnet", more=None, prefix="", **arguments):
    state = timm.create_model(name, **arguments).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {f"{prefix}{key}": value for key, value in state.items()}, **(more or {})}, path)
    return path, open_checkpoint(path)


def test_tensors_tell_the_model_and_its_classes(tmp_path):
    path, base = saved(tmp_path / "base.pt", num_classes=5)
    found = find_model(path, base, None)
    assert (found.model, found.arguments, found.why) == ("test_resnet", {"num_classes": 5}, "by its tensors")
    assert found.logits(base) == 5


def test_among_models_of_the_same_tensors_the_file_says_which(tmp_path):
    path, base = saved(tmp_path / "base.pt", "resnet18")
    found = find_model(path, base, None)
    assert found.model == "resnet18"
    assert found.why == "by its tensors; resnetblur18 has the same: --model says which"
    for more in ({"hyper_parameters": {"net": {"name": "resnetblur18"}}}, {"arch": "resnetblur18"}):
        path, base = saved(tmp_path / "other.ckpt", "resnet18", more)
        assert (find_model(path, base, None).model, find_model(path, base, None).why) == (
            "resnetblur18",
            "as the file says",
        )
    path, base = saved(tmp_path / "resnetblur18_base.pt", "resnet18")
    assert find_model(path, base, None).why == "by its file name; resnet18 has the same: --model says which"


def test_a_folder_of_timms_says_it_all(tmp_path):
    own = {"mean": (0.1, 0.2, 0.3), "crop_pct": 0.7}
    model = timm.create_model("test_resnet", num_classes=3, pretrained_cfg_overlay=own)
    timm.models.save_for_hf(model, tmp_path / "base")
    found = find_model(tmp_path / "base", open_checkpoint(tmp_path / "base"), None)
    assert (found.model, found.arguments["num_classes"], found.why) == ("test_resnet", 3, "by its config.json")
    assert found.data == {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.7}


def test_a_folder_of_transformers_is_loaded_by_it(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    about = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(about))
    base = open_checkpoint({"vit.x": torch.zeros(1), "classifier.weight": torch.zeros(3, 2)})
    found = find_model(tmp_path / "base", base, None)
    assert found.model["init_args"] == {"pretrained_model_name_or_path": str(tmp_path / "base")}
    assert (found.others, found.logits(base)) == ({"output_key": "logits"}, 3)
    assert (found.data["image_size"], found.data["mean"], found.data["crop_pct"]) == ([32, 32], [0.5] * 3, 1.0)
    (tmp_path / "base" / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ConfigurationError, match="is a BertModel of transformers"):
        find_model(tmp_path / "base", base, None)


def test_the_model_may_be_said(tmp_path):
    path, base = saved(tmp_path / "base.pt", num_classes=4)
    assert find_model(path, base, "test_resnet").arguments == {"num_classes": 4}
    with pytest.raises(ConfigurationError, match="--model: timm has no model 'resnet81'. Did you mean 'resnet18'"):
        find_model(path, base, "resnet81")


def test_what_is_no_model_of_timms_is_told_with_the_nearest(tmp_path):
    path, base = saved(tmp_path / "base.pt", "test_vit", depth=3)
    with pytest.raises(ConfigurationError, match="no model of timm has the tensors .* The nearest is 'test_vit'"):
        find_model(path, base, None)


def test_a_file_of_another_kind_states_nothing(tmp_path):
    from lwptv_lightning.checkpoints import stated_texts

    (tmp_path / "x").write_bytes(b"x")
    assert stated_texts(tmp_path / "x") == stated_texts(tmp_path / "none") == ()

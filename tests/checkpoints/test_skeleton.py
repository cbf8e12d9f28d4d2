import json
import sys

import pytest
import torch
from torch import nn

from lwptv_lightning.checkpoints import Checkpoint, TensorHeader, skeleton, skeleton_of, skeleton_problem
from lwptv_lightning.checkpoints.skeleton import tied_names


def checkpoint_in(folder, names=()):
    headers = dict.fromkeys(names, TensorHeader((1,), torch.float32))
    return Checkpoint("memory", headers, reader=None, folder=folder)


def write(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


def test_a_timm_folder_describes_its_model(tmp_path):
    config = {"architecture": "test_vit", "num_classes": 3, "pretrained_cfg": {"num_classes": 3}}
    before = torch.get_rng_state()
    model = skeleton_of(checkpoint_in(write(tmp_path, "config.json", config)))
    assert type(model).__name__ == "VisionTransformer"
    assert model.head.weight.shape[0] == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_a_transformers_folder_describes_its_model_without_weights(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config.architectures = ["ViTForImageClassification"]
    config.save_pretrained(tmp_path)
    model = skeleton_of(checkpoint_in(tmp_path))
    assert type(model) is transformers.ViTForImageClassification
    assert {each.device.type for each in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architecture": "no_such_model"},
        {"architectures": ["GPT2Model"]},
        {"architectures": ["NoSuchModel"], "model_type": "gpt2"},
        {"architectures": [], "model_type": "gpt2"},
        {"architectures": ["Trainer"], "model_type": "gpt2"},
        {"architectures": ["pipeline"], "model_type": "gpt2"},
        {"architectures": ["GPT2Model"], "model_type": "gpt2", "n_layer": 10**9},
        {"architecture": "test_vit", "model_args": {"depth": 10**9}},
        {"architectures": ["Mine"], "model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}},
    ],
)
def test_what_no_library_builds_is_none(config, tmp_path):
    write(tmp_path, "mine.py", "raise SystemExit('run')")
    checkpoint = checkpoint_in(write(tmp_path, "config.json", config))
    assert skeleton_of(checkpoint) is None
    problem = skeleton_problem(checkpoint)
    if not config:
        assert problem is None
    elif 10**9 in (config.get("n_layer"), *config.get("model_args", {}).values()):
        assert problem.endswith("has too many layers for its file")
    else:
        library = "timm" if "architecture" in config else "transformers"
        assert problem.startswith(f"{library} builds no model of it (")


def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    checkpoint = checkpoint_in(write(tmp_path, "config.json", {"architectures": ["GPT2Model"], "model_type": "gpt2"}))
    assert skeleton_of(checkpoint) is None
    problem = skeleton_problem(checkpoint)
    assert problem.startswith("transformers cannot be imported (")
    assert problem.endswith("pip install 'lwptv-lightning[clip]' installs it")


def test_without_a_folder_there_is_none(tmp_path):
    assert skeleton_of(checkpoint_in(None)) is None
    assert skeleton_of(checkpoint_in(tmp_path)) is None


def test_of_several_configurations_the_one_counts_whose_names_fit(tmp_path):
    pytest.importorskip("transformers")
    config = {"architecture": "test_vit", "pretrained_cfg": {}, "architectures": ["GPT2Model"], "model_type": "gpt2"}
    write(tmp_path, "config.json", config)
    for name, kind in (("blocks.0.norm1.weight", "VisionTransformer"), ("h.0.ln_1.weight", "GPT2Model")):
        assert type(skeleton_of(checkpoint_in(tmp_path, [name]))).__name__ == kind


def test_tied_weights_have_several_names():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    model["c"].weight = model["a"].weight
    assert tied_names(model) == {"a.weight", "c.weight"}


def test_a_wide_model_is_built_without_memory_alone(tmp_path, monkeypatch):
    places = []
    monkeypatch.setattr(skeleton, "_of_timm", lambda folder: places.append(str(torch.empty(0).device)) or 1 / 0)
    config = {"architecture": "test_vit", "model_args": {"embed_dim": 100}}
    write(tmp_path, "config.json", config)
    for width in (100, 10):
        headers = {"w": TensorHeader((width, 2), torch.float32)}
        assert skeleton_of(Checkpoint("memory", headers, reader=None, folder=tmp_path)) is None
    assert places == ["meta", "cpu", "meta"]

import json

import pytest
import torch
from _helpers.experts import make_network

from lwptv_lightning import MergeModule, TaskVectors
from lwptv_lightning.merging import Loading

TIMM = {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {}}


@pytest.mark.parametrize(
    ("files", "library", "line"),
    [
        ({"config.json": TIMM}, "timm", 'timm.create_model("local-dir:FOLDER", pretrained=True)'),
        ({"config.json": {"architectures": ["CLIPModel"]}}, "transformers", 'CLIPModel.from_pretrained("FOLDER")'),
        ({"config.json": {"model_type": "clip"}}, "transformers", 'AutoModel.from_pretrained("FOLDER")'),
        ({"config.json": {"architectures": ["x; exit()"]}}, "transformers", "import AutoModel"),
        ({"open_clip_config.json": {}, "config.json": TIMM}, "open_clip", '"local-dir:FOLDER"'),
        ({".metadata": {}}, None, "dcp.load"),
        ({"adapter_config.json": {}}, "peft", 'PeftModel.from_pretrained(base, "FOLDER")'),
        ({"config.json": []}, None, "load_file"),
        ({"config.json": {"a": 1}}, None, "load_file"),
        ({}, None, 'load_file("merged.safetensors")'),
    ],
)
def test_the_library_is_told_by_the_configuration(files, library, line, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    found = Loading.of(tmp_path)
    assert found.library == library
    assert line in found.markdown
    compile(found.code, "card", "exec")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("model.safetensors", 'load_file("model.safetensors")'),
        ("a.safetensors.index.json", 'open_checkpoint("a.safetensors.index.json")'),
        ('x").safetensors', 'load_file("FILE")'),
    ],
)
def test_a_single_file_is_named(name, line, tmp_path):
    (tmp_path / name).write_bytes(b"")
    assert line in Loading.of(tmp_path / name).code
    compile(Loading.of(tmp_path / name).code, "card", "exec")


def test_a_broken_configuration_says_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert Loading.of(tmp_path) == Loading()


@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_the_lines_of_a_folder_with_heads_give_a_sets_logits(name, tmp_path):
    base = make_network(name, 7)
    tasks = {"two": make_network(name, 2).state_dict(), "five": make_network(name, 5).state_dict()}
    for state in tasks.values():
        shared = {key: value for key, value in base.state_dict().items() if value.shape == state[key].shape}
        state |= {key: value + 0.01 if value.is_floating_point() else value for key, value in shared.items()}
    vectors = TaskVectors.open(base.state_dict(), tasks, model=base)
    module = MergeModule(base, vectors, "ties").merge_()
    out = module.save_merged(tmp_path / "out", heads=True)
    code = Loading.of(out).code.replace("FOLDER", str(out)).replace("SET", "five").replace("CLASSES", "5")
    found = {}
    exec(code, found)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found["model"].eval()(images), module.eval()(images, "five"))

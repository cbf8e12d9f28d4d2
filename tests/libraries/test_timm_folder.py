import json
import re

import pytest
import timm
import torch
from _helpers.library_folders import save_base, tuned
from safetensors.torch import load_file, save_file

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, merge, open_checkpoint, save_merged
from lwptv_lightning.checkpoints import Provenance
from lwptv_lightning.libraries import FolderError

RECIPE = MergeRecipe(scale=0.5)
MODELS = {
    "ResNet": ("resnet10t", {}),
    "ViT of another size": ("vit_tiny_patch16_224", {"img_size": 64}),
    "ConvNeXt": ("convnext_atto", {}),
}


def make(name, classes):
    model, options = MODELS[name]
    return timm.create_model(model, num_classes=classes, **options).eval()


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def change_config(folder, **changes):
    config = config_of(folder) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return config


def assert_loads(folder, merged):
    """Check that timm loads a folder as what was merged, and return its model."""
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert all(torch.equal(value, merged[key]) for key, value in loaded.state_dict().items())
    return loaded


@pytest.mark.parametrize("name", MODELS)
def test_classifiers_of_different_sizes_give_a_folder_without_one(name, tmp_path):
    base, tasks = make(name, 7), {}
    for task, classes in {"a": 2, "b": 5}.items():
        own = make(name, classes).state_dict()
        tasks[task] = own | {key: value for key, value in tuned(base, 1).items() if value.shape == own[key].shape}
    vectors = TaskVectors.open(base.state_dict(), tasks, model=make(name, 7))
    out, merged = save_merged(vectors, RECIPE, tmp_path / "out"), merge(vectors, RECIPE)
    loaded = assert_loads(out, merged)
    assert config_of(out)["num_classes"] == loaded.num_classes == 0
    assert set(Provenance.of(open_checkpoint(out)).left_out) == merged.keys() - loaded.state_dict().keys()
    by_module = MergeModule(make(name, 7), vectors, RECIPE).save_merged(tmp_path / "module")
    assert (by_module / "config.json").read_bytes() == (out / "config.json").read_bytes()
    assert_loads(by_module, merged)
    kept = save_merged(vectors, RECIPE, tmp_path / "kept", keep_classifier=True)
    assert assert_loads(kept, merged).num_classes == 7


def test_a_folder_gives_a_folder_with_what_its_own_configuration_alone_says(tmp_path):
    base = make("ResNet", 4)
    save_base(base, tmp_path / "base")
    about = config_of(tmp_path / "base")["pretrained_cfg"] | {"mean": [0.1, 0.2, 0.3]}
    config = change_config(tmp_path / "base", pretrained_cfg=about, label_names=["a", "b", "c", "d"])
    tasks = {task: tuned(base, seed) for seed, task in enumerate("ab")}
    vectors = TaskVectors.open(tmp_path / "base", tasks)
    with_model = TaskVectors.open(tmp_path / "base", tasks, model=make("ResNet", 4))
    outs = [
        save_merged(vectors, RECIPE, tmp_path / "out"),
        save_merged(with_model, RECIPE, tmp_path / "with a model"),
        MergeModule(make("ResNet", 4), vectors, RECIPE).save_merged(tmp_path / "module"),
    ]
    for out in outs:
        assert config_of(out) == config
        assert sorted(file.name for file in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        assert_loads(out, merge(vectors, RECIPE))


def test_a_configuration_of_one_level_is_read_as_timm_reads_it(tmp_path):
    base = make("ResNet", 4)
    save_base(base, tmp_path / "base")
    new = config_of(tmp_path / "base")
    old = new["pretrained_cfg"] | {"architecture": new["architecture"], "num_classes": 4}
    (tmp_path / "base" / "config.json").write_text(json.dumps(old))
    vectors = TaskVectors.open(tmp_path / "base", {"a": tuned(base, 1)})
    out = save_merged(vectors, RECIPE, tmp_path / "out")
    assert assert_loads(out, merge(vectors, RECIPE)).num_classes == 4


def test_a_configuration_of_another_model_is_refused_with_what_differs(tmp_path):
    base = make("ResNet", 4)
    save_base(base, tmp_path / "base")
    change_config(tmp_path / "base", architecture="resnet18")
    vectors = TaskVectors.open(tmp_path / "base", {"a": tuned(base, 1)})
    with pytest.raises(FolderError, match=r"no timm folder.*config\.json, resnet18: it would.*format='safetensors'"):
        save_merged(vectors, RECIPE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    change_config(tmp_path / "base", architecture="of_my_own")  # nobody here can tell
    out = save_merged(vectors, RECIPE, tmp_path / "out")
    assert config_of(out)["architecture"] == "of_my_own"


def test_names_of_an_earlier_version_of_timm_stay_as_timm_converts_them(tmp_path):
    base = timm.create_model("convnext_atto", num_classes=3)
    save_base(base, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    swaps = {
        r"stem\.": "downsample_layers.0.",
        r"stages\.(\d)\.downsample": r"downsample_layers.\1",
        r"stages\.(\d)\.blocks": r"stages.\1",
        "conv_dw": "dwconv",
        r"mlp\.fc": "pwconv",
        r"head\.fc": "head",
        r"head\.norm": "norm",
    }
    old = load_file(file)
    for new, earlier in swaps.items():
        old = {re.sub(new, earlier, name): value for name, value in old.items()}
    save_file(old, file)
    out = tmp_path / "out"
    save_merged(TaskVectors.open(tmp_path / "base", {"a": {k: v + 0.1 for k, v in old.items()}}), RECIPE, out)
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert loaded.num_classes == config_of(out)["num_classes"] == 3
    for new, earlier in {"stem.0.weight": "downsample_layers.0.0.weight", "head.fc.bias": "head.bias"}.items():
        torch.testing.assert_close(loaded.state_dict()[new], old[earlier] + 0.05)


def test_a_module_that_timm_cannot_describe_is_refused(tmp_path):
    base = make("ResNet", 4)
    base._model_args = {**getattr(base, "_model_args", {}), "block": object()}
    vectors = TaskVectors.open(base, {"a": tuned(base, 1)})
    with pytest.raises(FolderError, match=r"timm cannot say how the given model is built \(ValueError.*'block'"):
        save_merged(vectors, RECIPE, tmp_path / "out", format="timm")
    assert not list(tmp_path.iterdir())


def test_resampled_position_embeddings_give_a_folder_of_their_size(tmp_path):
    def make_vit(size):
        return timm.create_model("vit_tiny_patch16_224", img_size=size, num_classes=3).eval()

    base = make_vit(64)
    save_base(base, tmp_path / "base")
    tasks = {"a": tuned(base, 1, scale=0.001)}
    options = {"model": make_vit(96), "resize_position_embedding": True}
    vectors = TaskVectors.open(tmp_path / "base", tasks, **options)
    module = MergeModule(make_vit(96), vectors, RECIPE)
    for out in (save_merged(vectors, RECIPE, tmp_path / "out"), module.save_merged(tmp_path / "module")):
        loaded = assert_loads(out, merge(vectors, RECIPE))
        assert loaded.patch_embed.img_size == (96, 96)
        assert config_of(out)["pretrained_cfg"]["input_size"] == [3, 96, 96]

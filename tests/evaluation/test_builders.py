import numpy as np
import pytest
import torch
from _helpers.states import assert_same_bits, noise
from PIL import Image
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, MergeRecipe, TaskVectors, merge
from lwptv_lightning.evaluation import image_folders, timm_module

TINY = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 0}


def test_a_timm_model_is_merged_from_files(make_vit, tmp_path):
    base = make_vit().state_dict()
    states = {"base": base, "a": noise(base, 1), "b": noise(base, 2)}
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in states}
    for name, state in states.items():
        save_file(state, paths[name])
    files = {task: paths[task] for task in "ab"}
    arguments = {"model_arguments": TINY, "batch_keys": [["x"], "label"]}
    module = timm_module("vit_tiny_patch16_224", paths["base"], files, {"rule": "ties"}, **arguments)
    assert module.unpack({"x": 1, "label": 2}) == ({"x": 1}, 2)
    assert module.recipe == MergeRecipe("ties")
    expected = merge(TaskVectors.open(base, {task: states[task] for task in "ab"}), MergeRecipe("ties"))
    assert_same_bits(module.merge_().model.state_dict(), expected)


def test_files_of_another_image_size(make_vit, tmp_path):
    save_file(base := make_vit().state_dict(), tmp_path / "base.safetensors")
    save_file(noise(base, 1), tmp_path / "a.safetensors")
    arguments = (str(tmp_path / "base.safetensors"), {"a": str(tmp_path / "a.safetensors")}, "ties")
    larger = {"model_arguments": TINY | {"img_size": 64}}
    with pytest.raises(CheckpointError, match=r"has positions of 2x2 \(32 px\), expected 4x4 \(64 px\)"):
        timm_module("vit_tiny_patch16_224", *arguments, **larger)
    module = timm_module("vit_tiny_patch16_224", *arguments, **larger, resize_position_embedding=True)
    assert module.merge_().vectors.resized == ("pos_embed",)


@pytest.fixture
def folder(tmp_path):
    """Two classes, of black and of white images."""
    for name, value, count in (("black", 0, 2), ("white", 255, 3)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(np.full((20, 30, 3), value, dtype=np.uint8)).save(tmp_path / "set" / name / f"{index}.png")
    return str(tmp_path / "set")


def test_folders_are_sets_of_resized_and_normalised_images(folder):
    half = (0.5, 0.5, 0.5)
    suite = image_folders({"a": folder}, {"b": folder}, image_size=16, mean=half, std=half, batch_size=5, num_workers=0)
    assert list(suite.loaders) == ["id/a", "ood/b"]
    ((images, labels),) = suite.loaders["ood/b"]
    assert images.shape == (5, 3, 16, 16)
    assert labels.tolist() == [0, 0, 1, 1, 1]
    torch.testing.assert_close(images.mean((1, 2, 3)), torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0]))


def test_folders_may_be_cropped_and_chosen_on(folder):
    options = {"image_size": 16, "num_workers": 0, "validation": {"a": folder}}
    whole, part = (
        image_folders({"a": folder}, crop_pct=crop, interpolation="nearest", **options) for crop in (1.0, 0.5)
    )
    steps = [suite.loaders["id/a"].dataset.transform.transforms[0] for suite in (whole, part)]
    assert [step.size for step in steps] == [16, 32]
    assert list(whole.validation) == ["id/a"]

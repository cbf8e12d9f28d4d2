from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from lwptv_lightning.evaluation import image_transform
from lwptv_lightning.registry import ConfigurationError

IMAGE = Image.linear_gradient("L").resize((90, 70)).convert("RGB")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_images_are_prepared_as_timm_does(name):
    model = timm.create_model(name)
    found = image_transform(model)
    expected = create_transform(**resolve_model_data_config(model), is_training=False)
    torch.testing.assert_close(found(IMAGE), expected(IMAGE), rtol=0, atol=0)
    assert found.note == ""


def test_crop_and_size_and_interpolation_may_be_said():
    model = timm.create_model("test_resnet")
    found = image_transform(model, image_size=[32, 48], crop_pct=0.5, interpolation="nearest", mean=0.5, std=[1, 1, 1])
    assert found(IMAGE).shape == (3, 32, 48)
    assert (found.config["crop_pct"], found.config["mean"], found.config["std"]) == (0.5, (0.5,) * 3, (1.0,) * 3)
    whole, part = (image_transform(model, crop_pct=crop)(IMAGE) for crop in (1.0, 0.5))
    assert not torch.equal(whole, part)


def test_grey_models_get_grey_images():
    found = image_transform(timm.create_model("test_resnet", in_chans=1))
    assert found(IMAGE).shape[0] == 1
    assert found.config["mean"] == pytest.approx(
        (sum(resolve_model_data_config(timm.create_model("test_resnet"))["mean"]) / 3,)
    )


def test_a_model_built_for_another_size_gets_that_size(make_vit):
    assert image_transform(make_vit()).config["input_size"] == (3, 32, 32)
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    for size in (48, [48, 48]):
        model.config = SimpleNamespace(image_size=size)  # as transformers' have it
        assert image_transform(model).config["input_size"] == (3, 48, 48)


def test_what_a_model_does_not_say_is_said():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    found = image_transform(model)
    assert "taken as usual for ImageNet, 224x224 pixels of 0.875" in found.note
    assert image_transform(model, image_size=32, mean=0.5, std=0.5).note == ""
    tensor = torch.zeros(3, 4, 4)
    assert found(tensor) is tensor


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"crop_pct": 2}, "data.crop_pct: expected a number in"),
        ({"image_size": "x"}, "data.image_size: expected pixels"),
        ({"image_size": [1, 2, 3]}, "data.image_size: expected pixels"),
        ({"mean": [0.1, 0.2]}, "data.mean: expected 3 numbers"),
        ({"mean": "x"}, "data.mean: expected a number for each channel"),
        ({"std": 0}, "data.std: expected numbers above 0"),
        ({"interpolation": "bicubik"}, "data.interpolation: unknown interpolation 'bicubik'. Did you mean 'bicubic'"),
        ({"crop_mode": "centre"}, "data.crop_mode: unknown crop mode 'centre'. Did you mean 'center'"),
    ],
)
def test_what_cannot_be_is_told_with_its_key(given, message):
    with pytest.raises(ConfigurationError, match=message):
        image_transform(timm.create_model("test_resnet"), **given)


def test_a_model_of_other_channels_is_refused():
    with pytest.raises(ConfigurationError, match="takes images of 5 channels"):
        image_transform(nn.Sequential(nn.Conv2d(5, 4, 3)))

import pytest
import torch
from _helpers.own_suite import write_suite
from torch import nn

from lwptv_lightning.cli.made import (
    in_one_form,
    is_whole,
    make_model,
    make_module,
    make_suite,
    make_trainer,
    require_sound,
)
from lwptv_lightning.registry import ConfigurationError


def test_a_flat_configuration_is_made(tmp_path, monkeypatch):
    import yaml

    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(write_suite(tmp_path).read_text())
    values["metric"] = {
        "class_path": "torchmetrics.classification.MulticlassAccuracy",
        "init_args": {"average": "micro"},
    }
    values["heads"]["other"] = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 96, "out_features": 2}}
    require_sound(values)
    module = make_module(values)
    suite = make_suite(values, module)
    assert (module.tasks, module.recipe.ratio) == (("cats", "cars"), 0.5)
    assert list(suite.loaders) == ["id/cats", "id/cars", "ood/far/cats_drawn"]
    assert list(suite.validation) == ["id/cats"]
    assert {label for _, labels in suite.loaders["ood/far/cats_drawn"] for label in labels.tolist()} == {0, 2}
    assert isinstance(module.heads["other"], nn.Linear)


def test_keys_beside_an_older_model_are_its_arguments():
    values = {"model": "lwptv_lightning.zoo.zoo_module", "recipe": "ties", "data": {"class_path": "x.Y"}}
    found = in_one_form(values)
    assert found["model"] == {"class_path": "lwptv_lightning.zoo.zoo_module", "init_args": {"recipe": "ties"}}
    assert "recipe" not in found
    assert is_whole(found)
    assert not is_whole({"model": "resnet18"})
    assert in_one_form({"tasks": {"a": "x", "b": None}})["tasks"] == {"a": "x"}


def test_files_named_beside_a_model_of_ones_own_stand_at_the_top():
    model = {"class_path": "torchvision.models.squeezenet1_1", "init_args": {"base": "b", "num_classes": 3}}
    found = in_one_form({"model": model})
    assert (found["base"], found["model"]["init_args"]) == ("b", {"num_classes": 3})


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("test_resnt", {}, "model: timm has no model 'test_resnt'. Did you mean 'test_resnet'"),
        ("test_resnet", {"num_clases": 3}, "model_arguments.num_clases: .*Did you mean 'num_classes'"),
        ("test_resnet", {"pretrained": True}, "model_arguments.pretrained: it cannot be given"),
        ("test_resnet", {"num_classes": "x"}, "model_arguments: test_resnet: "),
        (
            {"class_path": "torch.nn.ReLU6", "init_args": {"x": 1}},
            {},
            "model.init_args.x: ReLU6 takes no such argument",
        ),
        (
            {"class_path": "torch.nn.ReLU6", "init_args": [1]},
            {"inplace": True},
            r"model.init_args: expected a mapping of argument to value, not \[1\]",
        ),
        ({"class_path": "torch.zeros"}, {}, "model.class_path: 'torch.zeros' does not say what arguments"),
    ],
)
def test_a_model_that_cannot_be_made_is_told(model, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        make_model(model, arguments)


def test_arguments_go_to_any_model():
    made = make_model({"class_path": "torch.nn.Linear", "init_args": {"in_features": 2}}, {"out_features": 3})
    assert made(torch.zeros(1, 2)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "cpuu"}, "trainer.accelerator: Lightning has no accelerator 'cpuu'. Did you mean 'cpu'?"),
        (
            {"accelerator": "cpu", "strategy": "ddpp"},
            "trainer.strategy: Lightning has no strategy 'ddpp'. Did you mean",
        ),
        ({"accelerator": "cpu", "devices": -3}, "trainer.devices: .*"),
        ({"accelerator": "cpu", "limit_val_batches": -1}, "trainer.limit_val_batches: .* invalid value -1"),
    ],
)
def test_what_a_trainer_cannot_take_is_told_by_its_key(options, message):
    from lightning.pytorch import Trainer

    with pytest.raises(ConfigurationError, match=f"^{message}"):
        make_trainer(lambda: Trainer(logger=False, enable_progress_bar=False, **options))

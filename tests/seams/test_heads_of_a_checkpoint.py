"""A Lightning checkpoint of a `MergeModule` gives back heads of every form, without their being given again."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, ZeroShotHead

RECIPE = MergeRecipe("task_arithmetic", scale=0.5)


class Net(nn.Module):
    def __init__(self, classifier):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3, padding=1), classifier

    def forward(self, images):
        return self.fc(self.stem(images).relu().mean((2, 3), keepdim=isinstance(self.fc, nn.Conv2d))).flatten(1)


class Distilled(nn.Module):
    """Two classifiers, as timm's distilled models have them."""

    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head, self.head_dist = nn.Linear(8, classes), nn.Linear(8, classes)
        self.pretrained_cfg = {"classifier": ("head", "head_dist")}

    def forward(self, images):
        features = self.stem(images).relu()
        return (self.head(features.mean((2, 3))) + self.head_dist(features.amax((2, 3)))) / 2


MODELS = {
    "linear": lambda classes: Net(nn.Linear(8, classes)),
    "1x1 convolution": lambda classes: Net(nn.Conv2d(8, classes, 1)),
    "weight norm": lambda classes: Net(weight_norm(nn.Linear(8, classes))),
    "norm and weights": lambda classes: Net(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, classes))),
    "two": Distilled,
}
SETS = {"id/a": 2, "id/b": 5, "ood/far": 5, "ood/zero": 8, "ood/third": 7}


def loader(classes):
    images = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(classes))
    return DataLoader(TensorDataset(images, torch.arange(12) % classes), batch_size=5)


@pytest.mark.parametrize("kind", MODELS)
def test_figures_are_given_again(kind, make_trainer, tmp_path):
    torch.manual_seed(0)
    make = MODELS[kind]
    base, third = make(3), make(7)
    vectors = TaskVectors.open(base, {"a": make(2), "b": make(5)}, model=base)
    given = {"far": "b", "zero": ZeroShotHead(torch.randn(8, 8), 20.0), "third": third.state_dict()}
    if kind == "two":
        del given["zero"]
    loaders = {name: loader(classes) for name, classes in SETS.items() if name.partition("/")[2] in {"a", "b", *given}}
    module = MergeModule(make(4), vectors, RECIPE, heads=given)
    trainer = make_trainer()
    expected = trainer.validate(module, loaders, verbose=False)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    assert torch.load(tmp_path / "m.ckpt", weights_only=True)

    loaded = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", model=make(4))
    assert set(loaded.head_names) == set(module.head_names)
    assert loaded.head("far") is loaded.head("b")
    assert make_trainer().validate(loaded, loaders, verbose=False) == expected
    same = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", model=make(4), heads=given)
    assert make_trainer().validate(same, loaders, verbose=False) == expected
    images = loader(2).dataset.tensors[0]
    expert = make(2).eval()
    own = vectors.classifier_state("a")
    expert.load_state_dict({**loaded.model.state_dict(), **own})
    assert torch.equal(expert(images), loaded.eval()(images, "a"))

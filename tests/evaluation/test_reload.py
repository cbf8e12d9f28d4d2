import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import (
    CheckpointError,
    MergeModule,
    MergeRecipe,
    TaskVectors,
    load_merged,
    open_checkpoint,
    save_merged,
)
from lwptv_lightning.evaluation import heads_path, own_heads, write_heads

RECIPE = MergeRecipe("ties", scale=0.5, ratio=0.25)


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.stem, self.norm, self.fc = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, classes)

    def forward(self, inputs):
        return self.fc(self.norm(self.stem(inputs)).relu())


def data(classes, seed):
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(torch.randn(20, 6, generator=generator), torch.arange(20) % classes), batch_size=8)


LOADERS = {"id/a": (2, 1), "id/b": (5, 2), "ood/far": (5, 3)}


@pytest.fixture
def loaders():
    return {name: data(*arguments) for name, arguments in LOADERS.items()}


@pytest.fixture
def vectors():
    torch.manual_seed(0)
    base = Net()
    return TaskVectors.open(base, {"a": Net(2), "b": Net(5)}, model=base)


@pytest.mark.parametrize("classes", [3, 7])
def test_figures_are_given_again(classes, vectors, loaders, make_trainer, tmp_path):
    module = MergeModule(Net(classes), vectors, RECIPE, heads={"far": "b"})
    expected = make_trainer().validate(module, loaders, verbose=False)
    path = module.save_merged(tmp_path / "m.safetensors", heads=True)
    loaded = load_merged(path, Net(4))
    assert make_trainer().validate(loaded, loaders, verbose=False) == expected
    assert loaded.installed == RECIPE
    assert loaded.tasks == ("a", "b")
    again = load_merged(loaded.save_merged(tmp_path / "again.safetensors", heads=True), Net(4))
    assert make_trainer().validate(again, loaders, verbose=False) == expected
    with pytest.raises(ValueError, match="own classifier .* is no checkpoint's"):
        load_merged(path, Net(4))(torch.randn(2, 6))
    with pytest.raises(ValueError, match="no task vectors"):
        loaded.merge_(recipe="ties")


def test_files_of_merges_that_no_module_made(vectors, loaders, make_trainer, tmp_path):
    module = MergeModule(Net(), vectors, RECIPE, heads={"far": "b"})
    expected = make_trainer().validate(module, loaders, verbose=False)
    path = save_merged(vectors, RECIPE, tmp_path / "m.safetensors", module.layers())
    heads = own_heads(Net(), vectors)
    write_heads({**heads, "far": heads["b"]}, heads_path(path))
    for classes in (3, 4):  # the base's classifier is in the file
        assert make_trainer().validate(load_merged(path, Net(classes)), loaders, verbose=False) == expected


def test_heads_may_be_others(vectors, loaders, make_trainer, tmp_path):
    module = MergeModule(Net(), vectors, RECIPE)
    path = module.save_merged(tmp_path / "m.safetensors", heads=True)
    loaded = load_merged(path, Net(), heads={**own_heads(Net(), vectors), "far": "a"})
    assert loaded.head_names == ("a", "b", "far")
    inputs = torch.randn(4, 6)
    assert torch.equal(loaded.eval()(inputs, "far"), module.eval()(inputs, "a"))


def test_what_is_no_merged_file_or_does_not_fit_is_refused(vectors, tmp_path):
    with pytest.raises(CheckpointError, match="does not say that it was merged"):
        load_merged(Net().state_dict(), Net())
    path = MergeModule(Net(7), vectors, RECIPE).save_merged(tmp_path / "m.safetensors")
    with pytest.raises(
        CheckpointError, match=r"does not fit the model, Net: fc\.weight, fc\.bias\. It may lack no more"
    ):
        load_merged(path, Net())  # without heads
    save_file({"stem.weight": torch.zeros(8, 6)}, tmp_path / "part.safetensors", open_checkpoint(path).metadata)
    with pytest.raises(CheckpointError, match=r"does not fit the model, Net: stem\.bias, norm\.weight"):
        load_merged(tmp_path / "part.safetensors", Net(), heads=own_heads(Net(), vectors))

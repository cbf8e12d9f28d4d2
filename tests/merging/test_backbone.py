import pytest
import torch
from torch import nn

from lwptv_lightning.merging import find_backbone, named_submodule
from lwptv_lightning.registry import UnknownNameError

SHAPES = {"0.weight": (3, 2), "0.bias": (3,), "1.weight": (4, 3), "1.bias": (4,)}


def net(width=3, bias=True):
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 4, bias=bias))


@pytest.mark.parametrize(
    ("submodules", "found"),
    [
        ({"model": net()}, "model"),
        ({"other": net(5), "model": net()}, "model"),
        ({"model": nn.ModuleDict({"encoder": net()}), "head": nn.Linear(4, 2)}, "model.encoder"),
        ({"model": torch.compile(net(), backend="eager")}, "model"),
    ],
)
def test_the_only_one_that_fits_is_found(submodules, found):
    assert find_backbone(nn.ModuleDict(submodules), SHAPES) == found


@pytest.mark.parametrize(
    ("submodules", "listed"),
    [
        ({"a": net(), "b": net()}, "'a', 'b'"),
        ({"a": net(bias=False), "b": net()}, r"'b', 'a' \(all but 1\.bias\)"),
        ({"a": net(), "b": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))}, None),
    ],
)
def test_several_that_fit_or_nearly_fit_are_an_error(submodules, listed):
    root = nn.ModuleDict(submodules)
    if listed is None:
        assert find_backbone(root, SHAPES) == "a"
    else:
        with pytest.raises(ValueError, match=f"several submodules of ModuleDict have the merged tensors: {listed}"):
            find_backbone(root, SHAPES)
        assert find_backbone(root, SHAPES, "b") == "b"


def test_what_does_not_fit_is_named():
    root = nn.ModuleDict({"a": net(5), "b": net(bias=False)})
    with pytest.raises(ValueError, match=r"no submodule of ModuleDict .*The nearest is 'b' \(all but 1\.bias\)"):
        find_backbone(root, SHAPES)
    assert find_backbone(root, SHAPES, otherwise="") == ""
    with pytest.raises(ValueError, match=r"'0\.weight' has shape \(5, 2\)"):
        find_backbone(root, SHAPES, "a")
    with pytest.raises(UnknownNameError, match="unknown backbone 'c'"):
        find_backbone(root, SHAPES, "c")


def test_submodules_of_compiled_ones_have_their_paths():
    inner = net()
    root = nn.ModuleDict({"model": torch.compile(nn.ModuleDict({"encoder": inner}), backend="eager")})
    for path in ("model.encoder", "model._orig_mod.encoder"):
        assert named_submodule(root, path) is inner
    with pytest.raises(UnknownNameError, match="unknown head 'model.encodr'. Did you mean 'model.encoder'"):
        named_submodule(root, "model.encodr", "head")

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from lwptv_lightning import CheckpointError, ZeroShotHead, heads_from, open_checkpoint, read_heads
from lwptv_lightning.evaluation.heads_file import HEADS_KEY, heads_path, write_heads
from lwptv_lightning.registry import UnknownNameError


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.stem, self.fc = nn.Linear(3, 4), nn.Linear(4, classes)


class Own(nn.Module):
    """What no file can make again."""

    def __init__(self, classes=5):
        super().__init__()
        self.layer = nn.Linear(4, classes)


@pytest.fixture
def distilled():
    import timm

    return timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2, num_classes=4
    )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("m.safetensors", "m.heads.safetensors"),
        ("m.v2.safetensors", "m.v2.heads.safetensors"),
        ("d", "d/heads.safetensors"),
    ],
)
def test_where_heads_are(path, expected):
    assert heads_path(path).as_posix() == expected


def test_tensors_are_named_for_plain_models(tmp_path):
    torch.manual_seed(0)
    heads = heads_from({"a": Net(2), "b/c.d": Net(5)}, Net())
    path = write_heads(heads, tmp_path / "m.heads.safetensors")
    stored = load_file(path)
    assert set(stored) == {f"{name}/fc.{kind}" for name in heads for kind in ("weight", "bias")}
    plain = Net(5)
    own = {name.removeprefix("b/c.d/"): value for name, value in stored.items() if name.startswith("b/c.d/")}
    assert not plain.load_state_dict(own, strict=False).unexpected_keys
    assert torch.equal(plain.fc.weight, heads["b/c.d"].weight)


def test_what_is_written_is_read_again(tmp_path, distilled):
    torch.manual_seed(0)
    zero_shot, plain = ZeroShotHead(torch.randn(3, 4), 37.5), nn.Linear(4, 2, bias=False)
    heads = {"zero": zero_shot, "plain": plain, **heads_from({"two": distilled}, distilled)}
    found = read_heads(write_heads(heads, tmp_path / "heads.safetensors"), distilled)
    assert list(found) == list(heads)
    features = torch.randn(6, 4)
    for name in ("zero", "plain"):
        assert torch.equal(found[name](features), heads[name](features))
        assert getattr(found[name], "in_place_of", ()) == ()
    assert found["two"].in_place_of == ("head", "head_dist")
    assert all(torch.equal(value, heads["two"].state_dict()[key]) for key, value in found["two"].state_dict().items())
    alone = read_heads(tmp_path / "heads.safetensors")  # linear classifiers need no model
    assert torch.equal(alone["two"].parts["head_dist"].weight, distilled.head_dist.weight)


def test_heads_of_any_kind_are_given_and_filled(tmp_path):
    own = Own()
    path = write_heads({"x": own}, tmp_path / "heads.safetensors")
    with pytest.raises(ValueError, match=r"the head of 'x' is a Own, which no file can make again: give heads="):
        read_heads(path)
    found = read_heads(path, modules={"x": Own()})["x"]
    assert torch.equal(found.layer.weight, own.layer.weight)
    with pytest.raises(CheckpointError, match=r"the head of 'x' has tensors .*\(5, 4\).*the given Own has"):
        read_heads(path, modules={"x": Own(6)})
    with pytest.raises(UnknownNameError, match="'y'"):
        read_heads(path, modules={"y": Own()})


def test_one_of_its_name_is_none_of_its_kind(tmp_path):
    """A module with a linear layer's tensors is not taken for one."""

    class Scaled(nn.Linear):
        def forward(self, features):
            return 2 * super().forward(features)

    path = write_heads({"x": Scaled(4, 2)}, tmp_path / "heads.safetensors")
    with pytest.raises(ValueError, match="'x' is a Scaled, which no file can make again"):
        read_heads(path)


def test_other_files_and_empty_ones_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there are no heads to write"):
        write_heads({}, tmp_path / "heads.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        write_heads({"a": nn.Linear(2, 2)}, tmp_path / "heads.pt")
    strange = nn.ModuleDict({"a/b": nn.Linear(2, 2)})
    with pytest.raises(
        ValueError, match=r"the head of 'x': a tensor's name may hold no '/' in a file, as 'a/b\.weight'"
    ):
        write_heads({"x": strange}, tmp_path / "heads.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="this is no file of heads"):
        read_heads(Net().state_dict())


def test_a_file_of_heads_is_no_model_of_its_folder(tmp_path):
    from safetensors.torch import save_file

    path = write_heads({"a": nn.Linear(4, 2)}, tmp_path / "merged.heads.safetensors")
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[HEADS_KEY]) == {"a": {"in_place_of": [], "type": "Linear"}}
    save_file(Net().state_dict(), tmp_path / "merged.safetensors")
    assert open_checkpoint(tmp_path).names == open_checkpoint(tmp_path / "merged.safetensors").names


BROKEN = {
    "no JSON": "{",
    "a list": "[]",
    "no description": '{"a": 3}',
    "no type": '{"a": {"in_place_of": []}}',
    "one place": '{"a": {"in_place_of": "fc", "type": "Linear"}}',
    "no number": '{"a": {"in_place_of": [], "type": "ZeroShotHead", "scale": "x"}}',
    "no weight": '{"b": {"in_place_of": [], "type": "ZeroShotHead", "scale": 1.0}}',
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_description_is_told(case, tmp_path):
    from safetensors.torch import save_file

    save_file({"a/weight": torch.zeros(2, 3)}, tmp_path / "heads.safetensors", {HEADS_KEY: BROKEN[case]})
    with pytest.raises(CheckpointError, match=r"heads\.safetensors: lwptv_heads is broken"):
        read_heads(tmp_path / "heads.safetensors")

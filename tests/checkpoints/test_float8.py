"""Float8 weights with scales, of files that the libraries wrote and of every shape that a scale may have."""

import json
import math
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from _helpers.states import noise
from safetensors.torch import load_file, save_file
from torch import nn

from lwptv_lightning import CheckpointError, TaskVectors, merge, open_checkpoint, save_merged
from lwptv_lightning.checkpoints import fingerprint
from lwptv_lightning.inspection import SAME_BASE, check, diff, verify

FILES = Path(__file__).parents[1] / "data" / "quantized"
WRITTEN = {
    "compressed_tensors_float8_channel": ("fc.weight", "fc.weight_scale"),
    "compressed_tensors_float8_tensor": ("fc.weight", "fc.weight_scale"),
    "compressed_tensors_float8_block": ("fc.weight", "fc.weight_scale"),
    "quanto_float8": ("fc.weight._data", "fc.weight._scale"),
    "torchao_float8": ("fc._weight_qdata", "fc._weight_scale"),
}
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def original():
    torch.manual_seed(0)
    return nn.ModuleDict({"fc": nn.Linear(64, 32), "norm": nn.LayerNorm(32)}).state_dict()


def by_hand(weight, scale, blocks):
    """Multiply each number by its scale, one by one, in float64."""
    made = torch.empty(weight.shape, dtype=torch.float64)
    numbers, scales = weight.double(), scale.double()
    for place in torch.cartesian_prod(*map(torch.arange, weight.shape)).reshape(-1, weight.dim()).tolist():
        made[tuple(place)] = numbers[tuple(place)] * scales[tuple(at // b for at, b in zip(place, blocks, strict=True))]
    return made


@pytest.mark.parametrize("file", WRITTEN)
def test_what_libraries_write(file):
    raw, (stored, scale) = load_file(FILES / f"{file}.safetensors"), WRITTEN[file]
    assert raw[stored].dtype == E4M3
    checkpoint = open_checkpoint(FILES / f"{file}.safetensors")
    assert set(checkpoint.names) == set(original())
    assert checkpoint.dequantized == ("fc.weight",)
    found, grid = checkpoint.read("fc.weight"), raw[scale].reshape(-1, raw[scale].shape[-1])
    assert found.dtype == checkpoint.headers["fc.weight"].dtype == torch.float32
    blocks = [math.ceil(length / count) for length, count in zip(found.shape, grid.shape, strict=True)]
    torch.testing.assert_close(found.double(), by_hand(raw[stored], grid, blocks), rtol=1e-6, atol=0)
    torch.testing.assert_close(found, original()["fc.weight"], rtol=0.07, atol=0.01)


def test_a_folder_of_transformers():
    raw = load_file(FILES / "transformers_fp8" / "model.safetensors")
    checkpoint = open_checkpoint(FILES / "transformers_fp8")
    assert set(checkpoint.names) == {name for name in raw if not name.endswith("_scale_inv")}
    assert len(checkpoint.dequantized) == 7
    for name in checkpoint.dequantized:
        expected = by_hand(raw[name], raw[f"{name}_scale_inv"], (16, 16))
        torch.testing.assert_close(checkpoint.read(name).double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(checkpoint.read("lm_head.weight"), raw["lm_head.weight"])


def test_a_state_dict_of_torchaos_classes_is_refused_by_their_name():
    with pytest.raises(CheckpointError, match=r"in the place of tensors \(fc\.weight\), .*torchao.*Float8Tensor"):
        open_checkpoint(FILES / "torchao_float8.pt")


SHAPES = [  # of weight, scale and block
    ((6, 4), (), (6, 4)),
    ((6, 4), (1,), (6, 4)),
    ((6, 4), (1, 1), (6, 4)),
    ((6, 4), (6, 1), (1, 4)),
    ((6, 4), (1, 4), (6, 1)),
    ((6, 4), (6,), (1, 4)),
    ((6, 4), (4,), (6, 1)),
    ((4, 4), (4, 1), (1, 4)),
    ((8, 6), (2, 3), (4, 2)),
    ((7, 8), (2, 2), (4, 4)),
    ((11, 5), (3, 2), (4, 4)),
    ((4, 8), (4, 2), (1, 4)),
    ((3, 4, 6), (3,), (1, 4, 6)),
    ((3, 4, 6), (3, 1, 1), (1, 4, 6)),
    ((3, 4, 6), (3, 4), (1, 1, 6)),
    ((3, 4, 6), (3, 1, 6), (1, 4, 1)),
    ((3, 8, 6), (3, 2, 3), (1, 4, 2)),
    ((6, 3, 2, 2), (6,), (1, 3, 2, 2)),
    ((130, 3), (2, 1), (128, 3)),
    ((6,), (1,), (6,)),
    ((6,), (6,), (1,)),
    ((0, 4), (1, 4), (1, 1)),
    ((0, 4), (), (1, 4)),
]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
@pytest.mark.parametrize(("shape", "scales", "blocks"), SHAPES)
def test_shapes_tell_what_a_scale_is_of(shape, scales, blocks, kind):
    weight, scale = torch.randn(shape).to(E4M3), torch.rand(scales).add(0.5).exp2().to(kind)
    found = open_checkpoint({"a.weight": weight, "a.weight_scale": scale, "a.bias": torch.ones(2)})
    assert found.names == ("a.weight", "a.bias")
    grid = scale.reshape([math.ceil(n / b) if n else 1 for n, b in zip(shape, blocks, strict=True)])
    expected = by_hand(weight, grid, blocks)
    assert found.read("a.weight").dtype == torch.float32
    torch.testing.assert_close(found.read("a.weight").double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [E4M3, E5M2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz])
@pytest.mark.parametrize("names", [("weight", "weight_scale_inv"), ("weight", "scale_weight"), ("up", "up_scale")])
def test_names_of_scales(names, kind):
    weight, scale = torch.randn(4, 6).to(kind), torch.tensor(3.0)
    for prefix in ("", "model.layers.0.fc."):
        found = open_checkpoint({prefix + names[0]: weight, prefix + names[1]: scale})
        assert found.names == (prefix + names[0],)
        assert torch.equal(found.read(found.names[0]), 3 * weight.float())


def test_what_serves_activations_is_left_out():
    state = {"a.weight": torch.ones(2, 3).to(E4M3), "a.weight_scale": torch.tensor(2.0), "a.bias": torch.ones(2)}
    extras = {f"a.{name}": torch.tensor(1.0) for name in ("input_scale", "k_scale", "v_scale", "scale_input")}
    extras |= {"scaled_fp8": torch.zeros(2).to(E4M3), "b.weight_scale_inv": torch.ones(1, 1)}
    found = open_checkpoint(state | extras | {"b.weight": torch.ones(2, 2, dtype=torch.bfloat16)})
    assert found.names == ("a.weight", "a.bias", "b.weight")
    alone = {"a.weight": torch.ones(2, 3), "a.k_scale": torch.ones(1)}
    assert open_checkpoint(alone).names == tuple(alone)
    assert "a.q_scale" in open_checkpoint(state | {"a.q_scale": torch.ones(2)}).names


def test_float8_without_a_scale_is_a_number_like_any_other():
    state = {"a.weight": torch.ones(2, 3).to(E4M3), "a.scale": torch.ones(2).to(E4M3), "b.weight_scale": torch.ones(2)}
    state |= {"c.weight": torch.ones(2).to(E5M2), "c.weight_scale": torch.ones(2).to(E5M2)}
    found = open_checkpoint(state)
    assert found.names == tuple(state)
    assert found.headers["a.weight"].dtype == E4M3
    assert found.dequantized == ()


REFUSED = {
    "its rows as well as its columns; dequantize": {"w": (4, 4), "w_scale": (4,)},
    "neither one number, nor one for each row": {"w": (4, 6), "w_scale": (3,)},
    "nor one for each row, column or block": {"w": (4, 6), "w_scale": (5, 6)},
    "row, column or block; dequantize": {"w": (4,), "w_scale": (4, 2)},
    r"blocks of 5 as well as of 8; say which by weight_block_size": {"w": (10, 4), "w_scale": (2, 1)},
    "with w_scale, w_scale_inv. beside it, and is expected once": {"w": (4, 6), "w_scale": (), "w_scale_inv": ()},
    "with w_scale, w_scale_2. beside it": {"w": (4, 6), "w_scale": (4, 1), "w_scale_2": ()},
    "with w_scale, w_zero_point. beside it": {"w": (4, 6), "w_scale": (4, 1), "w_zero_point": (4, 1)},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_shapes_do_not_tell_is_refused(words):
    state = {name: torch.ones(shape) for name, shape in REFUSED[words].items()}
    with pytest.raises(CheckpointError, match=rf"quantized weights: 'w' is float8_e4m3fn of shape .*{words}"):
        open_checkpoint(state | {"w": state["w"].to(E4M3)})


def test_vectors_of_square_weights_are_as_those_of_the_others():
    square, other = torch.randn(4, 4).to(E4M3), torch.randn(4, 6).to(E4M3)
    scale = torch.tensor([1.0, 2, 3, 4])
    state = {"q.weight": square, "q.weight_scale": scale, "up.weight": other, "up.weight_scale": scale}
    assert torch.equal(open_checkpoint(state).read("q.weight"), square.float() * scale[:, None])
    state |= {"up.weight": torch.randn(6, 4).to(E4M3)}
    assert torch.equal(open_checkpoint(state).read("q.weight"), square.float() * scale)
    state |= {"down.weight": other, "down.weight_scale": scale}
    with pytest.raises(CheckpointError, match="rows as well as its columns"):
        open_checkpoint(state)


CONFIGURED = {
    "transformers": {"quant_method": "fp8", "weight_block_size": [5, 4]},
    "compressed-tensors": {"config_groups": {"group_0": {"weights": {"block_structure": [5, 4]}}}},
}


@pytest.mark.parametrize("kind", CONFIGURED)
def test_the_configuration_beside_a_file_tells_blocks(kind, tmp_path):
    weight, scale = torch.randn(10, 8).to(E4M3), torch.rand(2, 2)
    name = "w.scale" if kind == "transformers" else "w.weight_scale"  # as DeepSeek's own files have it
    save_file({"w.weight": weight, name: scale}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": CONFIGURED[kind]}))
    found = open_checkpoint(tmp_path)
    torch.testing.assert_close(found.read("w.weight").double(), by_hand(weight, scale, (5, 4)), rtol=1e-6, atol=0)


def test_only_what_is_asked_for_is_read(monkeypatch):
    checkpoint = open_checkpoint(FILES / "transformers_fp8")
    inner, read = checkpoint._reader.checkpoint, []
    monkeypatch.setattr(inner, "read", lambda name: read.append(name) or type(inner).read(inner, name))
    checkpoint.read("model.layers.0.mlp.up_proj.weight")
    assert read == ["model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight_scale_inv"]
    again = pickle.loads(pickle.dumps(open_checkpoint(FILES / "transformers_fp8")))
    assert torch.equal(again.read(read[0]), checkpoint.read(read[0]))


def test_all_that_follows_sees_the_weights_themselves(tmp_path):
    base = FILES / "compressed_tensors_float8_block.safetensors"
    plain = {name: open_checkpoint(base).read(name) for name in original()}
    tasks = {"a": noise(original(), 1, 0.001), "b": FILES / "compressed_tensors_float8_channel.safetensors"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors = TaskVectors.open(base, tasks)
        merged, expected = (merge(each, "ties") for each in (vectors, TaskVectors.open(plain, tasks)))
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert merged["fc.weight"].dtype == torch.float32
    assert [found.verdict for found in check(base, tasks)] == [SAME_BASE] * 2
    assert diff(base, plain)[0].changed == 0
    assert fingerprint(open_checkpoint(base)) == fingerprint(open_checkpoint(plain))
    save_file(tasks["a"], tmp_path / "a.safetensors")
    tasks["a"] = tmp_path / "a.safetensors"
    path = save_merged(TaskVectors.open(base, tasks), "ties", tmp_path / "m.safetensors")
    assert load_file(path).keys() == original().keys()
    assert verify(path, base, tasks).passed

"""Who quantized a weight, told of files that the libraries themselves wrote; see ``tests/data/quantized/README.md``."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lwptv_lightning import CheckpointError, TaskVectors, open_checkpoint
from lwptv_lightning.inspection import check
from lwptv_lightning.task_vectors.schemes import scheme_of

FILES = Path(__file__).parents[1] / "data" / "quantized"
WRITTEN = {
    "awq": r"'fc\.qweight' is int32 with 'fc\.\w+' beside it \(AWQ\); .* first, or leave",
    "bitsandbytes_nf4": r"'fc\.weight' is uint8 .* \(bitsandbytes, 4 bits\); .* first, by model\.dequantize\(\) of",
    "bitsandbytes_int8": r"'fc\.weight' is int8 with 'fc\.SCB' beside it \(bitsandbytes, 8 bits\); .* model\.deq",
    "compressed_tensors_int4": r"'fc\.weight_packed' is int32 .* \(compressed-tensors\); .*TensorsConfig\(deq",
    "compressed_tensors_int8": r"'fc\.weight_packed' is int32 .* \(compressed-tensors\)",
    "hqq": r"'fc\.W_q' is uint8 .* \(HQQ\); .* by its HQQLinear\.dequantize\(\)",
    "quanto_int4": r"'fc\.weight\._data\._data' is uint8 .* \(quanto\); .* tensors' dequantize\(\)",
    "quanto_int8": r"'fc\.weight\._data' is int8 with 'fc\.weight\._scale' beside it \(quanto\)",
    "torchao_int8": r"'fc\._weight_qdata' is int8 .* \(torchao\)",
}


def plain():
    return nn.ModuleDict({"fc": nn.Linear(64, 32), "norm": nn.LayerNorm(32)})


@pytest.mark.parametrize("file", WRITTEN)
def test_the_library_is_named_before_anything_else_is_wrong(file):
    path, words = FILES / f"{file}.safetensors", f"quantized weights: {WRITTEN[file]}"
    base = plain().state_dict() | {"another": torch.ones(2)}
    with pytest.raises(CheckpointError, match=rf"^(task 'a' \()?{path}\)?: {words}"):
        TaskVectors.open(base, {"a": path})
    with pytest.raises(CheckpointError, match=f"the base's {words}"):
        TaskVectors.open(path, {"a": base})
    (found,) = check(base, {"a": path})
    assert found.verdict.startswith("quantized weights: 'fc.")
    (found,) = check(path, {"a": base})
    assert found.verdict.startswith("the base's quantized weights: 'fc.")


@pytest.mark.parametrize("file", WRITTEN)
def test_a_module_given_with_a_quantized_base(file):
    path = FILES / f"{file}.safetensors"
    with pytest.raises(CheckpointError, match="quantized weights"):
        TaskVectors.open(path, {"a": plain().state_dict()}, model=plain())


NAMES = {
    "GPTQ": ({"fc.qweight": (8, 64), "fc.qzeros": (2, 8), "fc.scales": (2, 64), "fc.g_idx": (64,)}, "fc.qweight"),
    "AQLM": ({"fc.codes": (8, 8, 1), "fc.codebooks": (1, 16, 1, 8), "fc.scales": (8, 1, 1, 1)}, "fc.codes"),
    "VPTQ": (
        {"fc.indices": (1, 8, 8), "fc.centroids.weight": (1, 64), "fc.res_centroids.weight": (1, 64)},
        "fc.indices",
    ),
    "MXFP4": ({"experts.up_proj_blocks": (2, 8, 16), "experts.up_proj_scales": (2, 8)}, "experts.up_proj_blocks"),
    "NVFP4, of ModelOpt": ({"weight": (8, 8), "weight_scale": (8, 1), "weight_scale_2": ()}, "weight"),
    "EETQ": ({"fc.weight": (8, 8), "fc.weight_scales": (8,)}, "fc.weight"),
    "TransformerEngine, with its scale in a pickle": ({"fc.weight": (8, 8), "fc._extra_state": (30,)}, "fc.weight"),
    "": ({"fc.weight": (8, 8), "fc.weight_scale": (8,)}, "fc.weight"),
}


@pytest.mark.parametrize("label", NAMES)
def test_names_tell_the_library(label, tmp_path):
    shapes, weight = NAMES[label]
    state = {name: torch.ones(shape, dtype=torch.uint8) for name, shape in shapes.items()}
    save_file(state | {"other.SCB": torch.ones(2)}, tmp_path / "m.safetensors")
    assert scheme_of(weight, open_checkpoint(tmp_path / "m.safetensors"))[0] == label


def test_float8_whose_scale_is_in_a_pickle(tmp_path):
    state = plain().state_dict()
    state |= {"fc.weight": state["fc.weight"].to(torch.float8_e4m3fn), "fc._extra_state": torch.ones(9).byte()}
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"with 'fc\._extra_state' beside it \(TransformerEngine, with its scale"):
        TaskVectors.open(plain().state_dict(), {"a": tmp_path / "m.safetensors"})

"""What is no floating number: quantized weights are refused by name, other tensors that differ are told, in one way."""

import json
import warnings

import pytest
import torch
from _helpers.states import noise
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, MergeModule, TaskVectors, merge
from lwptv_lightning.checkpoints import TensorHeader
from lwptv_lightning.inspection import SAME_BASE, check
from lwptv_lightning.task_vectors.integers import quantized

PLAIN = {"norm.weight": torch.linspace(0.5, 1.5, 64), "head.weight": torch.linspace(-1, 1, 256).reshape(4, 64)}


def integers(seed, *shape, dtype=torch.int8):
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def floats(seed, *shape, dtype=torch.float32):
    return (1 + torch.rand(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def float8(seed, *shape):
    return floats(seed, *shape, dtype=torch.float8_e4m3fn)


FORMS = {
    "beside a scale": lambda s: {"fc.weight": integers(s, 8, 8), "fc.scale": floats(s, 8, 1)},
    "uint8": lambda s: {"fc.weight": integers(s, 8, 8, dtype=torch.uint8), "fc.weight_scale": floats(s, 8, 1)},
    "zero points": lambda s: {
        "fc.weight": integers(s, 8, 8),
        "fc.weight_zero_point": integers(s, 8, dtype=torch.int32),
    },
    "at the root": lambda s: {"weight": integers(s, 8, 8), "weight_scale": floats(s, 8, 1)},
    "by another name": lambda s: {"fc.w_int8": integers(s, 8, 8), "fc.w_scale": floats(s, 8, 1)},
    "no weight by name": lambda s: {"table": integers(s, 8, 8), "table_scale": floats(s, 8, 1)},
    "beside the module": lambda s: {"fc.weight": integers(s, 8, 8), "fc_scale": floats(s, 8, 1)},
    "GPTQ": lambda s: {
        "fc.qweight": integers(s, 8, 8, dtype=torch.int32),
        "fc.qzeros": integers(s, 1, 8, dtype=torch.int32),
        "fc.scales": floats(s, 1, 8, dtype=torch.float16),
        "fc.g_idx": torch.arange(8, dtype=torch.int32),
    },
    "bitsandbytes, 8 bits": lambda s: {
        "fc.weight": integers(s, 8, 8),
        "fc.SCB": floats(s, 8),
        "fc.weight_format": torch.tensor(0, dtype=torch.uint8),
    },
    "bitsandbytes, 4 bits": lambda s: {
        "fc.weight": integers(s, 32, 1, dtype=torch.uint8),
        "fc.weight.absmax": floats(s, 1),
        "fc.weight.quant_map": torch.linspace(-1, 1, 16),
        "fc.weight.quant_state.bitsandbytes__nf4": integers(0, 20, dtype=torch.uint8),
    },
    "packed": lambda s: {
        "fc.weight_packed": integers(s, 8, 1, dtype=torch.int32),
        "fc.weight_scale": floats(s, 8, 1),
        "fc.weight_shape": torch.tensor([8, 8]),
    },
    "quanto": lambda s: {"fc.weight._data": integers(s, 8, 8), "fc.weight._scale": floats(s, 8, 1)},
    "HQQ": lambda s: {
        "fc.W_q": integers(s, 8, 8, dtype=torch.uint8),
        "fc.scale": floats(s, 8),
        "fc.zero": floats(s, 8),
    },
    "MXFP4": lambda s: {
        "e.proj_blocks": integers(s, 8, 8, dtype=torch.uint8),
        "e.proj_scales": integers(s, 8, dtype=torch.uint8),
    },
    "NVFP4": lambda s: {
        "fc.weight": integers(s, 8, 8, dtype=torch.uint8),
        "fc.weight_scale": float8(s, 8, 1),
        "fc.weight_scale_2": floats(s, 1),
    },
    "MXFP8": lambda s: {"fc.weight": float8(s, 8, 64), "fc.weight_scale": integers(s, 8, 2, dtype=torch.uint8)},
    "float8, divided": lambda s: {"fc.weight": float8(s, 8, 8), "fc.scale": floats(s, 1)},
    "powers of two": lambda s: {"fc.gamma": (8 * floats(s, 8)).to(torch.float8_e8m0fnu)},
    "VPTQ": lambda s: {
        "fc.indices": integers(s, 1, 8, 8, dtype=torch.int32),
        "fc.centroids.weight": floats(s, 1, 64),
        "fc.weight_scale": floats(s, 8),
    },
    "no scale": lambda s: {"fc.weight": integers(s, 8, 8)},
    "int64": lambda s: {"fc.weight": integers(s, 8, 8, dtype=torch.int64), "fc.weight_scale": floats(s, 8, 1)},
    "a part of a weight": lambda s: {"fc.weight.quantized": integers(s, 8, 8), "fc.weight.scale": floats(s, 8, 1)},
    "a parametrization": lambda s: {
        "fc.parametrizations.weight.original0": integers(s, 8, 8),
        "fc.parametrizations.weight.original1": floats(s, 8, 1),
    },
}


def both(form):
    """A base and a task with different weights of a form."""
    return PLAIN | FORMS[form](0), noise(PLAIN, 1, 0.01) | FORMS[form](1)


@pytest.mark.parametrize("form", FORMS)
def test_quantized_weights_that_differ_are_refused_by_name(form):
    base, task = both(form)
    weight = next(iter(FORMS[form](0)))
    with pytest.raises(CheckpointError, match=rf"task 'a' .*quantized weights: '{weight}' is .*Dequantize the base"):
        TaskVectors.open(base, {"a": task})
    (found,) = check(base, {"a": task})
    assert (found.passed, found.verdict[:17]) == (False, "quantized weights")
    assert not check(base, {"a": task}, read=False)[0].passed


@pytest.mark.parametrize("form", FORMS)
def test_the_same_quantized_weights_everywhere_are_no_matter(form):
    base, task = PLAIN | FORMS[form](0), noise(PLAIN, 1, 0.01) | FORMS[form](0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = merge(TaskVectors.open(base, {"a": task}), {"rule": "task_arithmetic", "scale": 1.0})
    assert all(torch.equal(merged[name].float(), base[name].float()) for name in FORMS[form](0))
    torch.testing.assert_close(merged["head.weight"], task["head.weight"])
    assert check(base, {"a": task})[0].verdict == SAME_BASE


@pytest.mark.parametrize(
    "form",
    [form for form in FORMS if quantized(TensorHeader.of_all(FORMS[form](0))).popitem()[1]],
)
def test_scales_alone_make_another_model_too(form):
    base, task = both(form)
    scale = quantized(TensorHeader.of_all(base)).popitem()[1][0]
    with pytest.raises(CheckpointError, match="quantized weights: "):
        TaskVectors.open(base, {"a": base | {scale: task[scale]}})


def test_one_side_alone_is_quantized():
    base, task = PLAIN | {"fc.weight": floats(0, 8, 8)}, PLAIN | FORMS["uint8"](1)
    for first, second in ((base, task), (task, base), ({f"net.{name}": each for name, each in base.items()}, task)):
        with pytest.raises(
            CheckpointError, match=r"quantized weights: '(net\.)?fc\.weight' is uint8 with '.*weight_scale'"
        ):
            TaskVectors.open(first, {"a": second})


def test_a_quantized_part_that_is_not_merged_is_no_matter():
    base, teacher = PLAIN | {"fc.weight": floats(0, 8, 8)}, FORMS["GPTQ"](1) | FORMS["no weight by name"](1)
    task = {f"net.{name}": each for name, each in noise(base, 1, 0.01).items()}
    task |= {f"teacher.{name}": each for name, each in teacher.items()}
    assert TaskVectors.open(base, {"a": task}).names == tuple(base)


@pytest.mark.parametrize("form", ["bitsandbytes, 4 bits", "GPTQ", "uint8"])
def test_an_adapter_to_quantized_weights_is_told_that_they_are(form, tmp_path):
    factors = {"A": floats(0, 2, 8), "B": floats(1, 8, 2)}
    save_file(
        {f"base_model.model.fc.lora_{factor}.weight": each for factor, each in factors.items()},
        tmp_path / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["fc"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    weight = next(iter(FORMS[form](0)))
    with pytest.raises(CheckpointError, match=rf"quantized weights.*{weight}"):
        TaskVectors.open(PLAIN | FORMS[form](0), {"a": tmp_path})


def test_excluded_weights_are_not_looked_at():
    base, task = both("beside a scale")
    TaskVectors.open(base, {"a": task}, exclude=["fc.*"])
    with pytest.raises(CheckpointError, match="quantized"):
        TaskVectors.open(base, {"a": task}, exclude=["fc.weight"])


def test_a_task_that_joins_is_looked_at():
    base, task = both("GPTQ")
    vectors = TaskVectors.open(base, {"a": base | noise(PLAIN, 1, 0.01)})
    with pytest.raises(CheckpointError, match=r"task 'b' .*quantized weights: 'fc\.qweight'"):
        vectors.with_task("b", task)


def test_what_the_configuration_beside_a_file_says(tmp_path):
    base = PLAIN | {"table": integers(0, 8, 8)}
    for name, seed in (("base", 0), ("task", 1)):
        (tmp_path / name).mkdir()
        save_file(noise(PLAIN, seed, 0.01) | {"table": integers(seed, 8, 8)}, tmp_path / name / "model.safetensors")
    with pytest.warns(UserWarning, match=r"no floating number and not as in the base, whose values are kept: table\."):
        merge(TaskVectors.open(base, {"a": tmp_path / "task"}), "ties")
    (tmp_path / "task" / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "own"}}))
    with pytest.raises(CheckpointError, match=r"'table' is int8 \(own, as the configuration beside it says\); merged"):
        TaskVectors.open(base, {"a": tmp_path / "task"})


def test_float8_without_the_scale_that_the_configuration_says_it_has(tmp_path):
    task = PLAIN | {"fc.weight": float8(1, 8, 8)}
    save_file(task, tmp_path / "model.safetensors")
    base = PLAIN | {"fc.weight": floats(0, 8, 8)}
    assert TaskVectors.open(base, {"a": tmp_path}).stack("fc.weight").shape == (1, 8, 8)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(
        CheckpointError, match=r"'fc\.weight' is float8_e4m3fn \(fp8, as the configuration beside it says"
    ):
        TaskVectors.open(base, {"a": tmp_path})


SILENT = {
    "counters": lambda s: {"bn.num_batches_tracked": torch.tensor(7 + s), "steps": torch.tensor([s])},
    "Swin's indices": lambda s: {
        "attn.logit_scale": floats(s, 3, 1, 1),
        "attn.relative_position_index": torch.arange(16).reshape(4, 4),
        "attn.coords_table": torch.arange(16, dtype=torch.int32).reshape(4, 4),
    },
    "positions": lambda s: {"emb.position_ids": torch.arange(10)[None], "emb.weight": floats(0, 4, 4)},
    "float8": lambda s: {"fc.weight": (floats(0, 8, 8) + s / 4).to(torch.float8_e4m3fn), "fc.bias": floats(0, 8)},
    "float8 with scales of layers": lambda s: {
        "fc.weight": (floats(0, 8, 8) + s / 4).to(torch.float8_e4m3fn),
        "fc.scale": (floats(0, 8) + s / 4).to(torch.float8_e4m3fn),
        "ls.gamma": floats(0, 8),
    },
    "powers of two": lambda s: {"ls.gamma": floats(0, 8).to(torch.float8_e8m0fnu), "fc.bias": floats(0, 8)},
    "indices of another width": lambda s: {"ids": torch.arange(9).to([torch.uint32, torch.uint64][s])},
    "masks": lambda s: {"attn.mask": torch.ones(4, 4).tril().bool(), "lut": torch.arange(8).to(torch.uint8)},
    "scales without integers": lambda s: {"fc.weight": floats(0, 8, 8), "fc.weight_scale": floats(0, 8)},
}


@pytest.mark.parametrize("kind", SILENT)
def test_correct_use_stays_silent(kind):
    base, task = PLAIN | SILENT[kind](0), noise(PLAIN, 1, 0.01) | SILENT[kind](1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge(TaskVectors.open(base, {"a": task}), "ties")
    assert check(base, {"a": task})[0].verdict == SAME_BASE


CHANGED = {
    "a mask": (torch.ones(4, 4).bool(), torch.ones(4, 4).tril().bool()),
    "indices": (torch.arange(6), torch.arange(6).flip(0)),
    "codes": (torch.arange(6).reshape(2, 3), torch.arange(6).reshape(2, 3).flip(0)),
    "bytes": (torch.arange(6).to(torch.uint8), torch.arange(6).to(torch.uint8).flip(0)),
    "another width": (torch.arange(6), torch.arange(6).flip(0).int()),
    "one number": (torch.tensor(3), torch.tensor(4)),
    "one of many bits": (torch.tensor([1 << 60, 1]), torch.tensor([(1 << 60) + 1, 1])),
    "uint16": (torch.arange(6).to(torch.uint16), torch.arange(6).flip(0).to(torch.uint16)),
    "uint64": (torch.arange(6).to(torch.uint64), torch.arange(6).flip(0).to(torch.uint64)),
    "uint64 and int64": (torch.arange(6).to(torch.uint64), torch.arange(6).flip(0)),
    "complex of another width": (torch.ones(3) + 1j, torch.ones(3, dtype=torch.complex128) + 2j),
    "complex": (torch.ones(3, dtype=torch.complex64), 2 * torch.ones(3, dtype=torch.complex64)),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_what_differs_and_is_not_merged_is_named_for_its_task(kind):
    ours, theirs = CHANGED[kind]
    base = PLAIN | {"own": ours}
    tasks = {"a": noise(PLAIN, 1, 0.01) | {"own": theirs}, "b": noise(PLAIN, 2, 0.01) | {"own": ours}}
    words = "no floating number and not as in the base, whose values are kept: own."
    with pytest.warns(UserWarning, match=rf"task 'a' \(state dict\): {words}") as warned:
        merged = merge(TaskVectors.open(base, tasks), "ties")
    assert len(warned) == 1
    assert torch.equal(merged["own"], ours)
    assert [found.verdict for found in check(base, tasks)] == [words, SAME_BASE]


def test_a_number_that_no_training_counts_is_named():
    base = PLAIN | {"attn.num_heads": torch.tensor(4), "bn.num_batches_tracked": torch.tensor(1)}
    task = noise(PLAIN, 1, 0.01) | {"attn.num_heads": torch.tensor(8), "bn.num_batches_tracked": torch.tensor(9)}
    assert check(base, {"a": task})[0].verdict.endswith("whose values are kept: attn.num_heads.")


def test_whoever_merges_is_told():
    base, task = PLAIN | {"own": torch.arange(6)}, noise(PLAIN, 1, 0.01) | {"own": torch.arange(6).flip(0)}
    model = torch.nn.ParameterDict({"norm": torch.nn.ParameterDict({"weight": PLAIN["norm.weight"]})})
    model.head = torch.nn.ParameterDict({"weight": PLAIN["head.weight"]})
    model.register_buffer("own", torch.zeros(6).long())
    with pytest.warns(UserWarning, match="task 'a' .*: own"):
        MergeModule(model, TaskVectors.open(base, {"a": task}), "ties").merge_()

"""PEFT's own adapters of small models; the merged model of PEFT is the oracle."""

import copy
import os
import warnings

import pytest
import timm
import torch
from _helpers.adapters import Small, change_config
from _helpers.adapters import write_lora as write_adapter
from safetensors.torch import load_file, save_file
from torch import nn

from lwptv_lightning import CheckpointError, TaskVectors
from lwptv_lightning.checkpoints import patterns
from lwptv_lightning.inspection import check

peft = pytest.importorskip("peft")


TARGETS = ["embedding", "conv", "pointwise", "fc1", "fc2"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc1": 16, "^conv": 3}},
        {"modules_to_save": ["head"]},
    ],
    ids=["plain", "rslora", "patterns", "saved whole"],
)
def test_a_task_vector_is_what_peft_adds(options, tmp_path):
    model = Small()
    expected = write_adapter(model, tmp_path, target_modules=TARGETS, **options)
    vectors = TaskVectors.open(model, {"a": tmp_path})
    base = model.state_dict()
    assert set(vectors.names) == set(base)
    for name, tensor in base.items():
        torch.testing.assert_close(vectors.stack(name)[0], expected[name] - tensor, atol=1e-5, rtol=0)
        torch.testing.assert_close(vectors.expert("a", name), expected[name], atol=1e-5, rtol=0)
    assert not vectors.stack("fc1.bias").any()


def test_a_difference_is_not_rounded_by_a_coarse_base(tmp_path):
    model = Small()
    write_adapter(model, tmp_path, target_modules=["fc1"])
    exact = TaskVectors.open(model, {"a": tmp_path}).stack("fc1.weight")
    assert torch.equal(TaskVectors.open(copy.deepcopy(model).bfloat16(), {"a": tmp_path}).stack("fc1.weight"), exact)


def test_adapter_of_a_timm_model_and_of_a_wrapped_base(make_vit, tmp_path):
    vit = make_vit()
    expected = write_adapter(vit, tmp_path, target_modules=["qkv"])
    wrapped = {f"model.{name}": tensor for name, tensor in vit.state_dict().items()}
    for base, model in ((vit, None), (wrapped, vit), (wrapped, None)):
        vectors = TaskVectors.open(base, {"a": tmp_path}, model=model)
        name = next(name for name in vectors.names if name.endswith("blocks.1.attn.qkv.weight"))
        difference = expected["blocks.1.attn.qkv.weight"] - vit.state_dict()["blocks.1.attn.qkv.weight"]
        torch.testing.assert_close(vectors.stack(name)[0], difference, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings(  # PEFT's
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning", "ignore:Could not find a config file in"
)
def test_adapter_of_a_transformers_model_merges_in_timms_names(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=16)).eval()
    tuned = write_adapter(clip, tmp_path, target_modules=["q_proj", "v_proj"])
    options = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 2}
    vit = timm.create_model("vit_base_patch32_clip_quickgelu_224", pretrained=False, num_classes=0, **options)
    tau = TaskVectors.open(clip, {"a": tmp_path}, model=vit).stack("blocks.1.attn.qkv.weight")[0]
    for part, rows in zip("qkv", tau.chunk(3), strict=True):
        name = next(name for name in tuned if name.endswith(f"encoder.layers.1.self_attn.{part}_proj.weight"))
        torch.testing.assert_close(rows, tuned[name] - clip.state_dict()[name], atol=1e-5, rtol=0)


def test_head_of_another_size_is_the_tasks_own(make_vit, tmp_path):
    base = make_vit(num_classes=3)
    adapted = make_vit(num_classes=5)
    write_adapter(adapted, tmp_path, target_modules=["qkv"], modules_to_save=["head"])
    vectors = TaskVectors.open(base, {"a": tmp_path}, model=base)
    assert vectors.classifier_state("a")["head.weight"].shape == (5, 48)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', expected 'LORA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' changed the base's weights"),
        ({"use_qalora": True}, "use_qalora is not supported, because QA-LoRA pools"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is not supported, because it acts on some tokens"),
        ({"arrow_config": {"top_k": 1}}, "arrow_config is not supported, because Arrow mixes adapters"),
        ({"kasa_config": {"beta": 1}}, "kasa_config is not supported, because KaSA cuts the base's"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is not supported, because the layers of its model"),
    ],
)
def test_other_adapters_are_refused(changes, words, tmp_path):
    write_adapter(Small(), tmp_path, target_modules=["fc1"])
    change_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=words):
        TaskVectors.open(Small(), {"a": tmp_path})


def test_damaged_adapters_are_named(tmp_path):
    write_adapter(Small(), tmp_path, target_modules=["fc1"])
    factors = load_file(tmp_path / "adapter_model.safetensors")
    a, b = "base_model.model.fc1.lora_A.weight", "base_model.model.fc1.lora_B.weight"
    for state, words in (
        ({a: factors[a]}, "'fc1' has one factor only"),
        ({a: factors[a][:2], b: factors[b]}, "factors of 'fc1'.* have no product"),
    ):
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match=words):
            TaskVectors.open(Small(), {"a": tmp_path})
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"whose scaling stands in an adapter_config\.json"):
        TaskVectors.open(Small(), {"a": tmp_path})


def test_adapter_of_another_model_is_refused(tmp_path):
    write_adapter(Small(), tmp_path, target_modules=["fc1"])
    with pytest.raises(CheckpointError, match=r"base has no tensor fc1\.weight.* to be the model that was"):
        TaskVectors.open(nn.Sequential(nn.Linear(2, 2)), {"a": tmp_path})


def test_an_adapter_in_memory_takes_no_scaling_from_the_current_folder(tmp_path, monkeypatch):
    write_adapter(Small(), tmp_path, target_modules=["fc1"])
    monkeypatch.chdir(tmp_path)  # where an adapter_config.json lies
    factors = load_file("adapter_model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"fc1\.lora_A\.weight' is a factor .* adapter_config\.json, and weights in"
    ):
        TaskVectors.open(Small(), {"a": factors})
    vectors = TaskVectors.open(Small(), {"a": "adapter_model.safetensors"})
    monkeypatch.chdir("/")
    assert vectors.stack("fc1.weight").any()


@pytest.fixture
def adapter(tmp_path):
    """The folder of an adapter of one layer, and its base."""
    write_adapter(Small(), tmp_path / "adapter", target_modules=["fc1"])
    return tmp_path / "adapter"


@pytest.mark.parametrize("pattern", ["(x+x+)+y", ".*.*.*.*.*.*.*.*.*.*.*.*.*z"])
def test_a_pattern_that_runs_for_ever_is_named(pattern, adapter, monkeypatch):
    monkeypatch.setattr(patterns.first_endings, "__defaults__", (0.5,))
    weights = load_file(adapter / "adapter_model.safetensors")
    longer = {name.replace("fc1", f"{'x' * 60}.fc1"): tensor for name, tensor in weights.items()}
    save_file(longer, adapter / "adapter_model.safetensors")
    change_config(adapter, alpha_pattern={pattern: 3})
    with pytest.raises(CheckpointError, match=r"adapter_config.json: alpha_pattern has patterns that take more than 0"):
        TaskVectors.open(Small(), {"a": adapter})


@pytest.mark.parametrize("alpha", [float("inf"), float("nan"), 10**400, "3", True, None])
def test_an_alpha_that_is_no_number(alpha, adapter):
    change_config(adapter, lora_alpha=alpha)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: lora_alpha must be a number"):
        TaskVectors.open(Small(), {"a": adapter})


def test_a_product_that_is_larger_than_its_base_is_never_made(adapter, monkeypatch):
    name = "base_model.model.fc1.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(1, 100_000), name.format("B"): torch.ones(100_000, 1)},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(
        CheckpointError, match=r"difference of 'fc1\.weight' has shape \(100000, 100000\), expected \(7, 6\)"
    ):
        TaskVectors.open(Small(), {"a": adapter})
    found = check(Small(), {"a": adapter})
    assert "has shape (100000, 100000)" in found[0].verdict


def test_factors_of_rank_zero(adapter):
    name = "base_model.model.fc1.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(0, 6), name.format("B"): torch.ones(7, 0)}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"the factors of 'fc1', .* have no product"):
        TaskVectors.open(Small(), {"a": adapter})


def test_a_configuration_that_is_no_file_beside_the_factors(adapter, tmp_path):
    config = adapter / "adapter_config.json"
    (tmp_path / "elsewhere.json").write_bytes(config.read_bytes())
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(CheckpointError, match="cannot be read .*expected a regular file, not a FIFO"):
        TaskVectors.open(Small(), {"a": adapter})
    config.unlink()
    config.symlink_to("../elsewhere.json")
    with pytest.raises(CheckpointError, match="cannot be read .*is a link that leads outside"):
        TaskVectors.open(Small(), {"a": adapter})
    # A folder of the user's links to an adapter.
    links = tmp_path / "links"
    links.mkdir()
    config.unlink()
    config.write_bytes((tmp_path / "elsewhere.json").read_bytes())
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (links / file).symlink_to(adapter / file)
    assert TaskVectors.open(Small(), {"a": links}).stack("fc1.weight").any()


def test_a_configuration_that_is_nested_without_an_end(adapter):
    (adapter / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="cannot be read .*nested too deeply"):
        TaskVectors.open(Small(), {"a": adapter})


def test_a_tied_embedding_that_was_trained_whole_cannot_be_said_in_a_file(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 11, "n_positions": 6}
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))
    base.save_pretrained(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter", target_modules=["c_attn"], modules_to_save=["wte"])
    with pytest.warns(UserWarning, match=r"wte.weight' was trained whole, and PEFT leaves lm_head.weight as the base"):
        TaskVectors.open(tmp_path / "base", {"a": tmp_path / "adapter"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TaskVectors.open(base, {"a": tmp_path / "adapter"})

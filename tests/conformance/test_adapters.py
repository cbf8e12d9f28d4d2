"""Every kind of adapter that the installed PEFT can make is read as PEFT merges it, or refused by its name."""

import json

import pytest
import torch
from _helpers.adapters import adapted, require_equal, save
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, TaskVectors
from lwptv_lightning.inspection import check

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
KINDS = sorted(kind.value for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
READ = {"LORA", "ADALORA", "TRAINABLE_TOKENS"}
OPTIONS = {  # where a kind's defaults do not suit a model of 16 features
    "LORA": {"r": 2, "init_lora_weights": False},
    "ADALORA": {"total_step": 10},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [3, 1]},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 4},
    "WAVEFT": {"n_frequency": 4},
    "MISS": {"r": 2},
    "BONE": {"r": 2},
    "SHIRA": {"r": 2},
    "PSOFT": {"r": 2},
    "ROAD": {"group_size": 8},
    "VBLORA": {"vector_length": 8, "num_vectors": 4, "topk": 2},
}
NOT_MADE = {"ADAMSS", "ADAPTION_PROMPT", "XLORA"}
"""Kinds that need another library, or another adapter; their configuration is written without a model."""


def llama():
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **tokens)).eval()


def made(kind, model):
    """Return a PEFT model of a kind."""
    kinds = {each.value: each for each in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING}
    config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kinds[kind]]
    fitting = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    options = {name: value for name, value in fitting.items() if name in config.__dataclass_fields__}
    return adapted(model, config(**{**options, **OPTIONS.get(kind, {})}))


@pytest.mark.filterwarnings("ignore")  # PEFT's own, of any of its kinds
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_read_as_peft_merges_it_or_refused(kind, tmp_path):
    model = llama()
    if kind in NOT_MADE:
        save_file({"base_model.model.x": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    else:
        tuned = made(kind, model)
        if kind in READ:
            expected = save(tuned, tmp_path)
            vectors = TaskVectors.open(model, {"a": tmp_path})
            assert any(vectors.stack(name).any() for name in vectors.names)
            return require_equal(vectors, model.state_dict(), expected)
        tuned.save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"adapter_config\.json: peft_type is '{kind}', expected 'LORA', 'ADALORA'"
    ):
        TaskVectors.open(model, {"a": tmp_path})
    with pytest.raises(CheckpointError, match="this is (an|a LoRA) adapter, and the base must be whole weights"):
        TaskVectors.open(tmp_path, {"a": model.state_dict()})
    (found,) = check(model, {"a": tmp_path})
    assert f"peft_type is '{kind}'" in found.verdict


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_what_changes_no_weight_is_said_to(kind, tmp_path):
    save_file({"prompt_embeddings": torch.ones(2, 3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    with pytest.raises(CheckpointError, match="learns inputs and changes no weight, so that there is nothing to merge"):
        TaskVectors.open({"w": torch.ones(2, 3)}, {"a": tmp_path})

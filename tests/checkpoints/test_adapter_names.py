import pytest
import torch

from lwptv_lightning import CheckpointError, open_checkpoint
from lwptv_lightning.checkpoints.adapter_names import AdapterNames

ROOT = "base_model.model."


def names_of(*names):
    return AdapterNames.of(open_checkpoint({name: torch.ones(1, 1) for name in names}))


def pair(module):
    return [f"{ROOT}{module}.lora_{factor}.weight" for factor in "AB"]


def test_wrappers_stand_in_no_name_of_the_model():
    found = names_of(
        *pair("fc"),
        *(f"{ROOT}{name}" for name in ("fc.base_layer.bias", "norm.bias", "fc.base_layer.weight", "head.weight")),
    )
    assert [module.path for module in found.modules] == ["fc"]
    assert set(found.whole) == {"fc.bias", "norm.bias", "fc.weight", "head.weight"}


def test_a_module_of_the_model_may_have_the_name_of_a_wrapper():
    found = names_of(*pair("base_layer.0"), f"{ROOT}base_layer.0.base_layer.bias", f"{ROOT}base_layer.1.bias")
    assert [module.path for module in found.modules] == ["base_layer.0"]
    assert set(found.whole) == {"base_layer.0.bias", "base_layer.1.bias"}


def test_what_is_wrapped_twice():
    found = names_of(*pair("attn"), *pair("attn.base_layer.out_proj"), *pair("experts"), *pair("experts.base_layer"))
    seen = [(module.path, module.depth, module.is_within) for module in found.modules]
    assert seen == [("attn", 0, False), ("attn.out_proj", 0, True), ("experts", 0, False), ("experts", 1, False)]


def test_rows_and_what_training_alone_needs():
    rows = [f"{ROOT}wte.token_adapter.trainable_tokens_delta", f"{ROOT}wte.token_adapter.base_layer.weight"]
    found = names_of(*pair("fc"), *rows, f"{ROOT}fc.lora_velora_embed", f"{ROOT}fc.lora_monteclora_sampler.std")
    assert found.rows == {"wte": rows[0]}
    assert found.whole == {"wte.weight": rows[1]}


def test_a_module_that_is_saved_whole_is_so_once():
    names = [f"{ROOT}head.{part}bias" for part in ("", "original_module.", "modules_to_save.")]
    assert names_of(*pair("fc"), *names).whole == {"head.bias": names[0]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fc.lora_diag", "'base_model.model.fc.lora_diag' is no factor A or B of plain LoRA"),
        ("fc.lora_A.bias", "'base_model.model.fc.lora_A.bias' is no part of LoRA that is known"),
        ("fc.lora_embedding_A", "'base_model.model.fc.lora_A.weight' and '.*embedding_A' are one part of an adapter"),
        ("other.lora_B.weight", "'other' has one factor only"),
    ],
)
def test_parts_that_are_not_known(name, words):
    with pytest.raises(CheckpointError, match=words):
        names_of(*pair("fc"), ROOT + name)

import json

import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, open_checkpoint
from lwptv_lightning.checkpoints.adapter_config import AdapterConfig, has_configuration


def config_of(folder, **options):
    save_file({"fc.lora_A.weight": torch.ones(1, 2)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | options))
    return AdapterConfig.beside(open_checkpoint(folder))


@pytest.mark.parametrize(
    ("options", "scaling"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"peft_type": "ADALORA", "init_r": 2}, 8 / (2 + 1e-5)),
        ({"peft_type": "ADALORA", "lora_alpha": 0}, 4 / (12 + 1e-5)),
    ],
)
def test_scaling(options, scaling, tmp_path):
    config = config_of(tmp_path, **options)
    (alpha,) = config.alphas(["fc"]).values()
    assert config.scaling(alpha, 4) == pytest.approx(scaling, rel=1e-12)


def test_the_alpha_of_the_first_pattern_that_ends_a_path(tmp_path):
    config = config_of(tmp_path, lora_alpha=3, alpha_pattern={"q": 5, r"layers\.1\..*": 7})
    found = config.alphas(["layers.0.q", "layers.1.q", "layers.1.k", "layers.0.k"])
    assert list(found.values()) == [5, 5, 7, 3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"peft_type": None}, "peft_type is None, expected 'LORA', 'ADALORA' or 'TRAINABLE_TOKENS'"),
        ({"peft_type": ["LORA"]}, r"peft_type is \['LORA'\], expected"),
        (
            {"peft_type": "A_NEW_KIND"},
            "peft_type is 'A_NEW_KIND', expected .*; merge it into its base first, by merge_and",
        ),
        ({"alpha_pattern": [1]}, "alpha_pattern must map patterns of modules to numbers"),
        ({"alpha_pattern": {"fc": "2"}}, "alpha_pattern of 'fc' must be a number"),
    ],
)
def test_what_is_no_configuration_of_a_linear_change(options, words, tmp_path):
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: {words}"):
        config_of(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "ask", "words"),
    [
        ({"target_parameters": "experts"}, lambda c: c.names("target_parameters"), "target_parameters must be a list"),
        ({"target_parameters": [3]}, lambda c: c.names("target_parameters"), "target_parameters must be a list of"),
        ({"peft_type": "ADALORA", "init_r": 0}, lambda c: c.scaling(1, 1), "init_r must be a positive whole number"),
        (
            {"use_bdlora": {"nblocks": "2", "target_modules_bd_a": ["f"]}},
            lambda c: c.diagonal_blocks("fc"),
            "nblocks must be a positive whole",
        ),
        ({"use_bdlora": {"target_modules_bd_b": 3}}, lambda c: c.diagonal_blocks("fc"), "bd_b must be a list of names"),
        ({"trainable_token_indices": {"other": [1]}}, lambda c: c.token_indices("fc"), "the tokens trained in 'fc'"),
        ({"trainable_token_indices": ["1"]}, lambda c: c.token_indices("fc"), "expected the indices of the tokens"),
    ],
)
def test_options_of_a_wrong_kind(options, ask, words, tmp_path):
    config = config_of(tmp_path, **options)
    with pytest.raises(CheckpointError, match=words):
        ask(config)


def test_blocks_of_a_diagonal(tmp_path):
    blocks = {"target_modules_bd_a": ["q"], "target_modules_bd_b": ["down"], "nblocks": 3}
    config = config_of(tmp_path, use_bdlora=blocks)
    assert [config.diagonal_blocks(name) for name in ("l.q", "l.down", "l.up")] == [("A", 3), ("B", 3), ("", 1)]


def test_a_configuration_belongs_to_the_file_of_peft_beside_it(tmp_path):
    config_of(tmp_path)
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    assert has_configuration(open_checkpoint(tmp_path / "adapter_model.safetensors"))
    assert not has_configuration(open_checkpoint(tmp_path / "model.safetensors"))
    assert not has_configuration(open_checkpoint({"w": torch.ones(1)}))

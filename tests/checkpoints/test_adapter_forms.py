"""Adapters in other forms than PEFT's folder: their names are those that the libraries write."""

import copy
import time

import lightning
import pytest
import torch
from _helpers.adapters import Small, adapted, require_equal, write_lora
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, TaskVectors, open_checkpoint
from lwptv_lightning.checkpoints import is_adapter
from lwptv_lightning.inspection import check

peft = pytest.importorskip("peft")


class Training(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch):
        return self.model(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(1, 3, 4, 4))


KINDS = {
    "LoRA": lambda: peft.LoraConfig(target_modules=["fc1", "conv"]),
    "a LoRA named otherwise": lambda: peft.LoraConfig(target_modules=["fc1"]),
    "LoHa": lambda: peft.LoHaConfig(target_modules=["fc1"]),
    "IA3": lambda: peft.IA3Config(target_modules=["fc1"], feedforward_modules=[]),
    "a head": lambda: peft.LoraConfig(target_modules=["fc1"], modules_to_save=["head"]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["Lightning", "state dict", "memory"])
def test_the_weights_of_a_peft_model_in_training_are_refused(kind, form, tmp_path):
    tuned = adapted(Small(), KINDS[kind]())
    if kind == "a LoRA named otherwise":
        tuned = peft.get_peft_model(Small(), KINDS[kind](), adapter_name="mine")
    source = tmp_path / "trained.ckpt"
    if form == "Lightning":
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "barebones": False}
        trainer = lightning.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
        trainer.strategy.connect(Training(tuned))
        trainer.save_checkpoint(source, weights_only=True)
    else:
        torch.save(tuned.state_dict(), source)
    if form == "memory":
        source = tuned.state_dict()
    words = r"is of the weights of a PEFT model in training, which holds no scaling; call merge_and_unload\(\) on the"
    with pytest.raises(CheckpointError, match=words):
        TaskVectors.open(Small(), {"a": source})
    with pytest.raises(CheckpointError, match=words):
        TaskVectors.open(source, {"a": Small()})
    (found,) = check(Small(), {"a": source})
    assert "merge_and_unload" in found.verdict


def test_factors_alone_without_their_folder(tmp_path):
    tuned = adapted(Small(), peft.LoraConfig(target_modules=["fc1"]))
    torch.save({name: tensor for name, tensor in tuned.state_dict().items() if "lora_" in name}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="lora_A.default.weight' is of the weights of a PEFT model in training"):
        TaskVectors.open(Small(), {"a": tmp_path / "a.pt"})


def test_a_file_of_peft_may_have_another_name(tmp_path):
    model = Small()
    expected = write_lora(model, tmp_path, target_modules=["fc1"], bias="lora_only")
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "mine.safetensors")
    require_equal(TaskVectors.open(model, {"a": tmp_path / "mine.safetensors"}), model.state_dict(), expected)
    torch.save(adapted(model, peft.LoraConfig(target_modules=["fc1"])).state_dict(), tmp_path / "all.pt")
    with pytest.raises(CheckpointError, match="is of the weights of a PEFT model in training"):
        TaskVectors.open(model, {"a": tmp_path / "all.pt"})


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("lora_unet_mid_block_0_to_k.lora_down.weight", "lora_unet_mid_block_0_to_k.alpha"), "a LoRA of kohya-ss"),
        (("lycoris_blocks_0_fc1.hada_w1_a", "lycoris_blocks_0_fc1.hada_w1_b"), "a LoRA of kohya-ss or LyCORIS"),
        (("lycoris_blocks_0_fc1.lokr_w1", "lycoris_blocks_0_fc1.lokr_w2_a"), "a LoRA of kohya-ss or LyCORIS"),
        (("unet.mid_block.attn1.to_q.lora.down.weight",), "a LoRA of diffusers"),
        (("unet.mid_block.attn1.processor.to_q_lora.up.weight",), "a LoRA of diffusers"),
        (("transformer.blocks.0.attn.to_q.lora_A.weight",), "a LoRA of diffusers"),
        (("layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"), "a LoRA of torchtune"),
    ],
)
def test_other_libraries_forms_are_refused_by_their_names(names, words, tmp_path):
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=words):
        TaskVectors.open(Small(), {"a": tmp_path / "a.safetensors"})


def test_names_of_whole_models_are_those_of_no_adapter():
    # As timm's DLA, a wrapped model, and RWKV name their parts.
    names = ["base_layer.0.weight", "m.base_layer.weight", "base_model.model.fc.weight", "w_lora.lora.0.weight"]
    base = {name: torch.zeros(4, 4) for name in names}
    vectors = TaskVectors.open(base, {"a": {name: tensor + 1 for name, tensor in base.items()}})
    assert all(vectors.stack(name).all() for name in vectors.names)
    assert copy.copy(vectors.names) == tuple(names)


@pytest.mark.parametrize("part", ["base_model.model.", "a.base_layer.", "lora_A.", "lora.", "default.", "."])
def test_long_names_are_told_apart_at_once(part):
    name = part * 100_000
    begin = time.monotonic()
    assert not is_adapter(open_checkpoint({f"{name}x": torch.ones(1), f"x.{name}y": torch.ones(1)})) or "lora_" in part
    assert time.monotonic() - begin < 5

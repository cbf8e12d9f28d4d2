import timm
import torch
import transformers
from torch import nn

from lwptv_lightning import open_checkpoint
from lwptv_lightning.checkpoints import ModelConfig


def test_timm_tells_architecture_classes_and_size():
    said = ModelConfig.of(torch.compile(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, num_classes=5)))
    assert (said.library, said.problem) == ("timm", None)
    assert (said.config["architecture"], said.config["num_classes"]) == ("vit_tiny_patch16_224", 5)
    assert not {"url", "file", "hf_hub_id"} & said.config["pretrained_cfg"].keys()


def test_transformers_tells_its_class_and_how_it_generates():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1))
    said = open_checkpoint(model).model_config
    assert (said.library, said.config["architectures"]) == ("transformers", ["GPT2LMHeadModel"])
    assert list(said.others) == ["generation_config.json"]


def test_others_tell_nothing_and_what_timm_cannot_say_is_a_problem():
    own = nn.Linear(1, 1)
    assert ModelConfig.of(own) is None
    own.pretrained_cfg = {"classifier": "fc"}
    assert ModelConfig.of(own) is None
    own.pretrained_cfg = {"architecture": "resnet18"}
    assert ModelConfig.of(own).problem is not None

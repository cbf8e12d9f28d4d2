"""Small models as timm, transformers and open_clip have them in folders, with random weights, and experts of each."""

import copy
import json

import open_clip
import timm
import torch
import transformers
from safetensors.torch import save_file

from lwptv_lightning import TaskVectors, open_checkpoint

SECRETS = ("optimizer.pt", ".env", "training_args.bin", "tokenizer.pkl", "credentials.json")
"""What stands beside a model and is never copied."""
OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
_TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 64}
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 16,
}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}


def make_transformers(name, classes=3):
    """Build a small model of transformers: CLIP, GPT-2 or BERT, whose heads are tied, or a classifier."""
    if name == "clip":
        config = {"text_config": _TEXT | _ENDS, "vision_config": _VISION, "projection_dim": 16}
        return transformers.CLIPModel(transformers.CLIPConfig(**config)).eval()
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, **_ENDS)
        return transformers.GPT2LMHeadModel(config).eval()
    if name == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(**_TEXT)).eval()
    if name == "bert classifier":
        config = transformers.BertConfig(**_TEXT, num_labels=classes)
        return transformers.BertForSequenceClassification(config).eval()
    if name == "token classifier":
        return transformers.BertForTokenClassification(transformers.BertConfig(**_TEXT, num_labels=classes)).eval()
    if name == "roberta classifier":
        config = transformers.RobertaConfig(**_TEXT, num_labels=classes)
        return transformers.RobertaForSequenceClassification(config).eval()
    if name == "vit":
        return transformers.ViTForImageClassification(transformers.ViTConfig(**_VISION, num_labels=classes)).eval()
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=classes)
    return transformers.ResNetForImageClassification(config).eval()


def make_open_clip(folder):
    """Build the model of an open_clip folder, whose configuration is written there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP, "preprocess_cfg": {}}))
    return open_clip.CLIP(**copy.deepcopy(OPEN_CLIP)).eval()


def save_base(model, folder):
    """Write a model as its own library does, with files beside it that are its users', and secrets."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, transformers.PreTrainedModel):
        model.save_pretrained(folder)
        (folder / "tokenizer_config.json").write_text("{}")
        (folder / "preprocessor_config.json").write_text('{"size": 32}')
    elif hasattr(model, "pretrained_cfg"):
        timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    else:
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("the base's")
    for name in SECRETS:
        (folder / name).write_text("SECRET")
    return folder


def tuned(model, seed, scale=0.02):
    """Return the state of a model after noise was added to what is floating."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + scale * torch.randn(value.shape, generator=generator).to(value.dtype)
        if value.is_floating_point() and value.dim()
        else value.clone()
        for name, value in model.state_dict().items()
    }


def vectors_of(base, folder, **options):
    """Write a base to a folder, and open it with two experts of the names that its file has."""
    save_base(base, folder)
    stored = open_checkpoint(folder).names
    states = {task: tuned(base, seed) for seed, task in enumerate("ab")}
    tasks = {task: {name: state[name] for name in stored} for task, state in states.items()}
    return TaskVectors.open(folder, tasks, **options)

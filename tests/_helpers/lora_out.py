"""Models of the libraries that people have, small, and whether PEFT makes of an adapter what a dense merge is."""

import json
import warnings

import torch
from safetensors.torch import save_file
from torch import nn

from _helpers.states import noise
from lwptv_lightning.checkpoints import model_names


class EveryKind(nn.Module):
    """A model with every kind of tensor that an adapter holds in its own way."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.words = nn.Embedding(11, 8, padding_idx=0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        out = nn.Linear(12, 8, bias=False)
        self.block = nn.ModuleDict({"fc": nn.Linear(8, 12), "norm": nn.LayerNorm(12), "out": out})
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv1d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm1d(4)
        self.grouped = nn.Conv1d(4, 4, 3, groups=2)
        self.dilated = nn.Conv1d(4, 4, 2, dilation=2)
        self.gamma = nn.ParameterList([torch.ones(4)])
        self.first = nn.Linear(16, 3)
        self.straight = nn.Linear(3, 3)

    def forward(self, ids):
        x = self.words(ids) + self.token
        x = x + self.attention(x, x, x)[0]
        x = self.norm(x + self.block["out"](self.block["norm"](self.block["fc"](x)).relu()))
        x = self.grouped(self.bn(self.conv(x.mean(1, keepdim=True))))
        x = self.dilated(x) * self.gamma[0][:, None]
        return nn.functional.linear(self.first(x.flatten(1)), self.straight.weight, self.straight.bias)


def every_kind():
    torch.manual_seed(0)
    return EveryKind().eval(), torch.arange(10).reshape(2, 5)


def timm_model(name):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    return model, torch.randn(2, *model.default_cfg["input_size"])


WHISPER = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}


def transformers_model(name):
    import transformers

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"vocab_size": 30, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, **small}
    image = {"image_size": 16, "patch_size": 8, **small}
    gpt2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 30, "bos_token_id": 0, "eos_token_id": 1}
    of_both = {f"{part}_{of}": value for part in ("encoder", "decoder") for of, value in WHISPER.items()}
    ids = {"vocab_size": 30, "decoder_start_token_id": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sound = {"d_model": 16, "num_mel_bins": 4, "max_source_positions": 8, "max_target_positions": 8}
    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    made = {
        "WhisperForConditionalGeneration": lambda: transformers.WhisperConfig(**of_both, **sound, **ids),
        "T5ForConditionalGeneration": lambda: transformers.T5Config(**t5, **ids),
        "GPT2LMHeadModel": lambda: transformers.GPT2Config(**gpt2),
        "BertForSequenceClassification": lambda: transformers.BertConfig(**text),
        "BertForMaskedLM": lambda: transformers.BertConfig(**text),
        "ViTForImageClassification": lambda: transformers.ViTConfig(**image),
        "CLIPModel": lambda: transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=8),
    }
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, name)(made[name]()).eval()


def transformers_inputs(name):
    ids = {"input_ids": torch.arange(12).reshape(2, 6)}
    pixels = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    if name.endswith("ForConditionalGeneration"):
        sound = {"input_features": torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))}
        return (sound if name.startswith("Whisper") else ids) | {"decoder_input_ids": ids["input_ids"]}
    return ids | pixels if name == "CLIPModel" else pixels if name.startswith("ViT") else ids


def open_clip_folder(folder):
    import open_clip

    vision = {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8}
    text = {"context_length": 8, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1}
    folder.mkdir()
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    state = {name: tensor.contiguous() for name, tensor in open_clip.CLIP(**config["model_cfg"]).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def tuned(state, seed):
    """Noise on all that is floating; running variances stay positive."""
    moved = noise(state, seed, scale=0.03)
    return {name: tensor.abs() if name.endswith("running_var") else tensor for name, tensor in moved.items()}


def with_peft(model, folder):
    """Load an adapter onto a model; whatever PEFT warns of is an error."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is deprecated", category=FutureWarning)
        return peft.PeftModel.from_pretrained(model, str(folder)).eval()


def largest_difference(state, dense):
    """The largest difference of a library's model from a dense merge, whose tensors it may name otherwise."""
    differences = [(state[name].double() - tensor.double()).abs() for name, tensor in dense.items()]
    return max(float(each.max()) for each in differences if each.numel())


def renamed(dense, model):
    names = model_names(model, list(dense))
    assert names.keys() == dense.keys()
    return {names[name]: tensor for name, tensor in dense.items()}

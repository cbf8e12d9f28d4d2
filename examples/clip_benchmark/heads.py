"""Zero-shot heads: a class's weight is the mean of what the text encoder makes of its name in several sentences."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

SENTENCES = ("a photo of a {}.", "a blurry photo of a {}.", "a photo of the {}.", "an image of a {}.")


class ZeroShotHead(nn.Module):
    """``logits = scale * normalize(features) @ weight.T``.

    Args:
        weight: ``(classes, features)``, of unit length each.
        scale: CLIP's inverse temperature.
    """

    def __init__(self, weight: Tensor, scale: float = 100.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * normalize(features, dim=-1) @ self.weight.T


def zero_shot_weight(
    text_model: nn.Module, tokenize: Any, classes: Sequence[str], sentences: Sequence[str] = SENTENCES
) -> Tensor:
    """Return ``(classes, features)`` from an open_clip model and its tokenizer."""
    rows = []
    with torch.no_grad():
        for name in classes:
            words = name.replace("_", " ")
            embedded = text_model.encode_text(tokenize([sentence.format(words) for sentence in sentences]))
            rows.append(normalize(normalize(embedded, dim=-1).mean(0), dim=-1))
    return torch.stack(rows)


def cached_heads(
    folder: Path,
    classes: dict[str, Sequence[str]],
    make_text_encoder: Callable[[], tuple[nn.Module, Any]],
    sentences: dict[str, Sequence[str]] | None = None,
) -> dict[str, ZeroShotHead]:
    """Return a head for each set; the text encoder is made only for those that no earlier run has stored."""
    encoder = None
    heads = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, names in classes.items():
        path, own = folder / f"{name}.safetensors", (sentences or {}).get(name, SENTENCES)
        about = {"sentences": json.dumps(list(own))}
        if not path.exists():
            encoder = encoder or make_text_encoder()
            save_file({"weight": zero_shot_weight(*encoder, names, own)}, path, about)
        with safe_open(path, framework="pt") as file:
            heads[name], stored = ZeroShotHead(file.get_tensor("weight")), file.metadata() or {}
        if len(heads[name].weight) != len(names):
            raise ValueError(
                f"{path} is a head of {len(heads[name].weight)} classes, expected {len(names)}; delete it."
            )
        if stored.get("sentences") != about["sentences"]:
            raise ValueError(f"{path} is a head of other sentences; delete it.")
    return heads


def open_clip_encoder(name: str, pretrained: str) -> tuple[nn.Module, Any]:
    """Return an open_clip model and its tokenizer; needs the extra ``clip``."""
    import open_clip

    model = open_clip.create_model(name, pretrained=pretrained)
    return model.eval(), open_clip.get_tokenizer(name)

"""Zero-shot heads, kept in files: the text encoder is made only for those that no earlier run has stored."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lwptv_lightning import ZeroShotHead, zero_shot_head
from lwptv_lightning.evaluation import SENTENCES


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
        about = {"sentences": json.dumps(list(own)), "classes": json.dumps(list(names))}
        if not path.exists():
            encoder = encoder or make_text_encoder()
            save_file({"weight": zero_shot_head(*encoder, names, own).weight}, path, about)
        with safe_open(path, framework="pt") as file:
            heads[name], stored = ZeroShotHead(file.get_tensor("weight")), file.metadata() or {}
        if len(heads[name].weight) != len(names):
            raise ValueError(
                f"{path} is a head of {len(heads[name].weight)} classes, expected {len(names)}; delete it."
            )
        for what, text in about.items():
            if stored.get(what) != text:
                raise ValueError(f"{path} is a head of other {what}; delete it.")
    return heads


def open_clip_encoder(name: str, pretrained: str) -> tuple[nn.Module, Any]:
    """Return an open_clip model and its tokenizer; needs the extra ``clip``."""
    import open_clip

    model = open_clip.create_model(name, pretrained=pretrained)
    return model.eval(), open_clip.get_tokenizer(name)

"""Zero-shot heads: a class's weight is the mean of what the text encoder makes of its name in several sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lwptv_lightning.registry import require_finite, require_kind, require_texts

SENTENCES = ("a photo of a {}.", "a blurry photo of a {}.", "a photo of the {}.", "an image of a {}.")
"""What a class's name is put into by default; those of one data set do better on it."""


class ZeroShotHead(nn.Module):
    """``logits = scale * normalize(features) @ weight.T``.

    Args:
        weight: ``(classes, features)``, of unit length each.
        scale: CLIP's inverse temperature.

    Example:
        >>> ZeroShotHead(torch.eye(2))(torch.tensor([[3.0, 4.0]])).round()
        tensor([[60., 80.]])
    """

    weight: Tensor

    def __init__(self, weight: Tensor, scale: float = 100.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.scale = require_finite("scale", scale)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, classes)`` of an image encoder's features ``(B, features)``."""
        return self.scale * normalize(features, dim=-1) @ self.weight.T


def zero_shot_head(
    model: nn.Module | str,
    tokenizer: Any = None,
    classes: Sequence[str] = (),
    templates: Sequence[str | Callable[[str], str]] = SENTENCES,
    *,
    pretrained: str | None = None,
    scale: float | None = None,
) -> ZeroShotHead:
    """Return the head that an open_clip model's text encoder makes of the names of classes.

    It acts on the features of that model's image encoder, which it knows no dimension of but theirs.

    Args:
        model: An open_clip model, whatever has ``encode_text``; or its name for ``open_clip.create_model``.
        tokenizer: Makes tokens of a list of sentences; open_clip's own where the model is given by name.
        classes: Names of the classes, in the order of their labels; ``_`` stands for a space.
        templates: Sentences with ``{}`` for a class's name, or functions of it, such as open_clip's.
        pretrained: Of a model that is given by name: its weights, a tag or a file.
        scale: CLIP's inverse temperature; by default the model's own.

    Raises:
        ValueError: There is no class or template, one is given twice, or a template has no ``{}``.
        TypeError: The model cannot encode text, or no tokenizer is given with it.
        ImportError: ``open_clip`` is not installed: ``pip install 'lwptv-lightning[clip]'``.

    Example:
        >>> class Encoder(nn.Module):
        ...     def encode_text(self, tokens):
        ...         return tokens
        >>> tokenizer = lambda sentences: torch.tensor([[3.0, 4.0 * ("dog" in text)] for text in sentences])
        >>> zero_shot_head(Encoder(), tokenizer, ["cat", "dog"]).weight
        tensor([[1.0000, 0.0000],
                [0.6000, 0.8000]])

    Reference:
        Radford et al., arXiv 2103.00020, section 3.1.4: sentences are averaged as embeddings of unit length.
    """
    classes = require_texts("classes", classes, "the classes' names")
    if not classes or not templates:
        raise ValueError(f"{'templates' if classes else 'classes'} is empty: expected one at least.")
    if twice := [name for place, name in enumerate(classes) if name in classes[:place]]:
        raise ValueError(f"the class {twice[0]!r} is given twice.")
    given = [templates] if isinstance(templates, str) else list(templates)
    wrong = [each for each in given if isinstance(each, str) and ("{}" not in each or isinstance(templates, str))]
    if wrong:
        raise ValueError(f"templates must be sentences with {{}} for a class's name, not {wrong[0]!r}.")
    if isinstance(model, str):
        model, tokenizer = _open_clip(model, pretrained, tokenizer)
    require_kind("model", model, nn.Module, "an open_clip model or its name")
    encode: Any = getattr(model, "encode_text", None)
    if encode is None or tokenizer is None:
        lacks = "has no encode_text" if encode is None else "needs its tokenizer, open_clip.get_tokenizer(name)"
        raise TypeError(f"{type(model).__name__} {lacks}, so that no class's name can be encoded.")
    if scale is None:
        own = getattr(model, "logit_scale", None)
        scale = float(own.detach().exp()) if isinstance(own, Tensor) else 100.0
    return ZeroShotHead(_weight(model, encode, tokenizer, classes, templates), scale)


def _weight(
    model: nn.Module,
    encode: Callable[[Tensor], Tensor],
    tokenizer: Callable[[list[str]], Tensor],
    classes: Sequence[str],
    templates: Sequence[str | Callable[[str], str]],
) -> Tensor:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    rows, was_training = [], model.training
    model.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            for name in classes:
                words = name.replace("_", " ")
                sentences = [each.format(words) if isinstance(each, str) else each(words) for each in templates]
                embedded = encode(tokenizer(sentences).to(device)).float()
                rows.append(normalize(normalize(embedded, dim=-1).mean(0), dim=-1))
    finally:
        model.train(was_training)
    return torch.stack(rows).cpu()


def _open_clip(name: str, pretrained: str | None, tokenizer: Any) -> tuple[nn.Module, Any]:
    try:
        import open_clip
    except ImportError as error:
        raise ImportError("zero_shot_head needs open_clip: pip install 'lwptv-lightning[clip]'.") from error
    model: nn.Module = open_clip.create_model(name, pretrained=pretrained)
    return model, tokenizer or open_clip.get_tokenizer(name)

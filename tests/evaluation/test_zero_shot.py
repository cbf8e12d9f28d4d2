import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from lwptv_lightning import ZeroShotHead, zero_shot_head

SMALL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "patch_size": 8, "head_width": 4},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture
def clip():
    """A CLIP of open_clip's, and its tokenizer."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    model = open_clip.CLIP(**SMALL)
    return model.train(), open_clip.SimpleTokenizer(context_length=12)


def test_it_classifies_as_clip_does(clip):
    model, tokenizer = clip
    sentences = ["a photo of a {}.", lambda name: f"the {name}"]
    head = zero_shot_head(model, tokenizer, ["cat", "fire_engine"], sentences)
    assert model.training
    images = torch.randn(3, 3, 16, 16)
    model.eval()
    with torch.no_grad():
        rows = []
        for name in ("cat", "fire engine"):
            embedded = normalize(model.encode_text(tokenizer([f"a photo of a {name}.", f"the {name}"])), dim=-1)
            rows.append(normalize(embedded.mean(0), dim=-1))
        features = normalize(model.encode_image(images), dim=-1)
        expected = model.logit_scale.exp() * features @ torch.stack(rows).T
        torch.testing.assert_close(head(model.encode_image(images)), expected)
    assert not head.weight.requires_grad


def test_scales():
    assert ZeroShotHead(torch.eye(2)).scale == 100
    assert zero_shot_head(Encoder(), tokens, ["a"], scale=7).scale == 7
    with pytest.raises(ValueError, match="scale"):
        ZeroShotHead(torch.eye(2), float("nan"))


class Encoder(nn.Module):
    def encode_text(self, given):
        return given


def tokens(sentences):
    return torch.ones(len(sentences), 2)


REFUSED = {
    "no class": ((Encoder(), tokens, []), ValueError, "classes is empty"),
    "one text": ((Encoder(), tokens, "cat"), TypeError, "classes must be the classes' names"),
    "twice": ((Encoder(), tokens, ["a", "b", "a"]), ValueError, "the class 'a' is given twice"),
    "no template": ((Encoder(), tokens, ["a"], []), ValueError, "templates is empty"),
    "no place": ((Encoder(), tokens, ["a"], ["a photo."]), ValueError, "with {} for a class's name, not 'a photo.'"),
    "a text": ((Encoder(), tokens, ["a"], "a {}."), ValueError, "templates must be sentences .*, not 'a {}.'"),
    "no text encoder": ((nn.Linear(2, 2), tokens, ["a"]), TypeError, "Linear has no encode_text"),
    "no tokenizer": ((Encoder(), None, ["a"]), TypeError, "Encoder needs its tokenizer"),
    "no model": ((3, tokens, ["a"]), TypeError, "model must be an open_clip model or its name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_head_is_refused(case):
    arguments, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        zero_shot_head(*arguments)


def test_without_open_clip_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"pip install 'lwptv-lightning\[clip\]'"):
        zero_shot_head("ViT-B-32", classes=["a"])

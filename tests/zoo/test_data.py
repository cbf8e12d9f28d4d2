"""The rendered sets: same seed, same pixels; every class can be seen and told from the others."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from lwptv_lightning.zoo import FAR_SETS, ID_SETS, NEAR_SETS, OOD_SETS, dataset, loaders
from lwptv_lightning.zoo.data import draw
from lwptv_lightning.zoo.glyphs import (
    characters,
    faces_with,
    glyph_mask,
)
from lwptv_lightning.zoo.styles import render

RENDERED = [name for name in ID_SETS + OOD_SETS if name != "digits"]


DIGESTS = """
import hashlib, json, sys
from lwptv_lightning.zoo.data import draw
print(json.dumps({name: hashlib.sha256(draw(name, "test", 5)[0].tobytes()).hexdigest() for name in sys.argv[1:]}))
"""


def test_another_process_renders_the_same_pixels():
    command = [sys.executable, "-c", DIGESTS, *RENDERED]
    elsewhere = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    assert elsewhere == {name: hashlib.sha256(draw(name, "test", 5)[0].tobytes()).hexdigest() for name in RENDERED}


def test_global_random_state_is_neither_read_nor_changed():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = draw("greek_noise", "test", 7)[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    np.testing.assert_array_equal(draw("greek_noise", "test", 7)[0], first)


@pytest.mark.parametrize("name", RENDERED)
def test_splits_and_samples_are_all_different(name):
    images = [dataset(name, split, 60).images.numpy() for split in ("train", "validation", "test")]
    pixels = {image.tobytes() for split in images for image in split}
    assert len(pixels) == 180


@pytest.mark.parametrize("name", ID_SETS + OOD_SETS)
def test_set_is_balanced_and_normalised(name):
    images = dataset(name, size=150)
    assert len(images) == 150
    assert images.images.shape == (150, 1, 32, 32)
    assert images.images.dtype == torch.float32
    counts = torch.bincount(images.labels)
    assert counts.max() - counts.min() <= 1
    torch.testing.assert_close(images.images.mean((1, 2, 3)), torch.zeros(150), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.images.std((1, 2, 3)), torch.ones(150), atol=1e-3, rtol=0)
    image, label = images[1]
    assert image.shape == (1, 32, 32)
    assert isinstance(label, int)


def test_sets_are_rendered_once():
    assert dataset("greek_noise", "test", 10) is dataset("greek_noise", "test", 10)


def test_loaders_name_and_order_the_sets():
    named = loaders(size=20, batch_size=16)
    places = {"id": ID_SETS, "ood/near": NEAR_SETS, "ood/far": FAR_SETS}
    assert list(named) == [f"{place}/{name}" for place, names in places.items() for name in names]
    sizes = [len(labels) for _, labels in named["id/greek_noise"]]
    assert sizes == [16, 4]
    labels = torch.cat([labels for _, labels in named["id/greek_noise"]])
    assert torch.equal(labels, dataset("greek_noise", size=20).labels)


def test_loaders_leave_out_sets_without_the_split():
    assert len(loaders("validation", size=2)) == len(ID_SETS) + len(OOD_SETS) - 1
    assert "ood/far/digits" not in loaders("validation", size=2)
    sets = ["arrows_occluded", "arrows_dots"]
    assert list(loaders("train", size=2, sets=sets)) == ["ood/far/arrows_occluded", "ood/near/arrows_dots"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dataset("greek_nois"), KeyError, "Did you mean 'greek_noise'"),
        (lambda: loaders(sets=["upper"]), KeyError, "unknown set 'upper'"),
        (lambda: dataset("digits", "train"), ValueError, "'test'"),
        (lambda: dataset("greek_noise", "val"), ValueError, "validation"),
        (lambda: loaders("valid", size=2), ValueError, "validation"),
        (lambda: dataset("greek_noise", size=0), ValueError, "size"),
        (lambda: characters("greeks"), KeyError, "Did you mean 'greek'"),
        (lambda: faces_with("Ա", ("cmr10",)), ValueError, "ARMENIAN"),
        (lambda: render(glyph_mask("A", "cmr10"), "dot", 0.1, np.random.default_rng(0)), KeyError, "'dots'"),
        (lambda: render(glyph_mask("A", "cmr10"), "dots", 2, np.random.default_rng(0)), ValueError, "strength"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()

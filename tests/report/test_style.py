from itertools import combinations

import pytest
import torch
from matplotlib.colors import to_rgb

from lwptv_lightning.report.style import BAND, FAINT, GROUND, INK, SERIES, dark_of

# Machado, Oliveira and Fernandes, A physiologically-based model for simulation of color vision deficiency, 2009, for
# the severity 1.0; they act on linear RGB.
SEEN = {
    "by most": torch.eye(3),
    "without red": torch.tensor(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "without green": torch.tensor(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
XYZ = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    values = torch.tensor(to_rgb(colour))
    return torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(colour, seen):
    xyz = XYZ @ (SEEN[seen] @ linear(colour)).clamp(0, 1) / (XYZ @ torch.ones(3))
    f = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(first, second):
    low, high = sorted(float((XYZ @ linear(each))[1]) for each in (first, second))
    return (high + 0.05) / (low + 0.05)


def themes():
    return {"light": lambda colour: colour, "dark": dark_of}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("seen", SEEN)
def test_series_differ_for_the_colour_blind(seen, theme):
    of = themes()[theme]
    distances = {
        pair: float((lab(of(pair[0]), seen) - lab(of(pair[1]), seen)).norm()) for pair in combinations(SERIES, 2)
    }
    assert min(distances.values()) > 11, min(distances, key=distances.get)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_letters_and_series_stand_out_from_the_ground(theme):
    of = themes()[theme]
    assert contrast(of(INK), of(GROUND)) > 12
    assert contrast(of(FAINT), of(GROUND)) > 4.5
    assert contrast(of(FAINT), of(BAND)) > 3.5
    assert min(contrast(of(colour), of(GROUND)) for colour in SERIES) > 2

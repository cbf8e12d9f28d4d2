import numpy as np
import pytest

from lwptv_lightning.zoo.glyphs import (
    glyph_mask,
)
from lwptv_lightning.zoo.styles import STYLES, render


@pytest.mark.parametrize("style", STYLES)
def test_strength_changes_the_image(style):
    mask = glyph_mask("A", "DejaVuSans")
    weak, strong = (render(mask, style, strength, np.random.default_rng(0)) for strength in (0.1, 0.9))
    assert np.isfinite(strong).all()
    assert np.array_equal(weak, strong) == (style == "plain")

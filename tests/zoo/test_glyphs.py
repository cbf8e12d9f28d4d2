import itertools

import numpy as np
import pytest

from lwptv_lightning.zoo.glyphs import (
    ALPHABETS,
    PRETRAINING_FACES,
    TASK_FACES,
    characters,
    class_rows,
    faces_with,
    glyph_mask,
)
from lwptv_lightning.zoo.training import draw_pretraining


def test_pretraining_shares_no_draw_with_the_tasks():
    assert not set(PRETRAINING_FACES) & set(TASK_FACES)
    first, other = draw_pretraining(3, seed=0), draw_pretraining(3, seed=1)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("faces", [PRETRAINING_FACES, TASK_FACES], ids=["pretraining", "tasks"])
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_every_class_is_visible_and_unlike_the_others(alphabet, faces):
    classes = characters(alphabet)
    for face in faces:
        masks = [glyph_mask(character, face) for character in classes if face in faces_with(character, faces)]
        assert all(mask.max() > 0.5 and mask.sum() > 40 for mask in masks), face
        for one, other in itertools.combinations(masks, 2):
            # As a share of the ink of both; the closest pair, a hard and a soft sign, differs in a serif.
            assert np.abs(one - other).sum() / (one.sum() + other.sum()) > 0.04, face


def test_no_character_is_listed_twice():
    every = "".join(ALPHABETS.values())
    assert len(set(every)) == len(every) == class_rows("symbols").stop

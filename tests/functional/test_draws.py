import itertools

import numpy as np
import pytest
import torch

from lwptv_lightning.functional import random_keep

MANY = 200_000


@pytest.mark.parametrize("probability", [0.001, 1 / 256, 0.1, 0.3, 0.5, 0.5 + 1 / 1000, 0.999])
def test_the_share_kept_is_the_probability(probability):
    kept = random_keep(MANY, probability, 0, ["a", "b"], "w")
    deviation = (probability * (1 - probability) / MANY) ** 0.5
    assert kept.unique().tolist() == [0.0, 1.0]
    assert ((kept.mean(1) - probability).abs() < 5 * deviation).all()
    both = probability**2
    assert abs((kept[0] * kept[1]).mean() - both) < 5 * (both * (1 - both) / MANY) ** 0.5


def test_neighbours_are_drawn_independently():
    kept = random_keep(MANY, 0.3, 5, ["a"], "w")[0]
    for distance in (1, 2, 7, 8, 9, 64):
        together = (kept[distance:] * kept[:-distance]).mean()
        assert abs(together - 0.09) < 5 * (0.09 * 0.91 / MANY) ** 0.5


def test_a_probability_for_each_element_is_kept_to():
    chances = torch.tensor([0.0, 0.25, 0.75]).repeat(1, MANY // 4)
    kept = random_keep(chances.shape[1], chances, 3, ["a"], "w").reshape(-1, 3).mean(0)
    assert kept[0] == 0
    assert np.allclose(kept[1:], [0.25, 0.75], atol=0.01)


@pytest.mark.parametrize("probability", [0.5, 0.3])
def test_the_draw_of_an_element_depends_on_its_position_alone(probability):
    whole = random_keep(1000, probability, 1, ["a", "b"], "w")
    ends = [0, 1, 8, 15, 16, 500, 1000]
    parts = [
        random_keep(end - start, probability, 1, ["a", "b"], "w", start) for start, end in itertools.pairwise(ends)
    ]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(random_keep(1000, probability, 1, ["b"], "w")[0], whole[1])


def test_certainty_and_nothing():
    assert random_keep(3, 1.0, 0, ["a"], "w").tolist() == [[1.0, 1.0, 1.0]]
    assert random_keep(0, 0.5, 0, ["a"], "w").shape == (1, 0)
    assert random_keep(0, 0.3, 0, ["a"], "w").shape == (1, 0)

import random

import torch

from lwptv_lightning.report.fronts import front_of, outline_of
from lwptv_lightning.search import Front


def test_the_front_is_that_of_a_search():
    draw = random.Random(0)
    for _ in range(50):
        points = [(draw.randint(0, 6) / 7, draw.randint(0, 6) / 7) for _ in range(draw.randint(1, 12))]
        found = front_of(points)
        wanted = Front(*torch.tensor(points, dtype=torch.float64).T).on_front
        assert {points[index] for index in found} == {points[index] for index in wanted.nonzero().flatten().tolist()}
        assert [points[index][0] for index in found] == sorted(points[index][0] for index in found)
    assert front_of([]) == []


def test_the_outline_holds_every_point_and_is_convex():
    draw = random.Random(0)
    for count in (1, 2, 3, 10, 100):
        points = [(draw.random(), draw.random()) for _ in range(count)]
        corners = outline_of(points)
        assert {*corners} <= {*points}
        for begin, end in zip(corners, corners[1:] + corners[:1], strict=True):
            for x, y in points if count > 2 else []:
                assert (end[0] - begin[0]) * (y - begin[1]) - (end[1] - begin[1]) * (x - begin[0]) >= -1e-12
    assert outline_of([(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]) == [(0.0, 0.0), (2.0, 2.0)]
    assert outline_of([(1.0, 1.0)] * 4) == [(1.0, 1.0)]

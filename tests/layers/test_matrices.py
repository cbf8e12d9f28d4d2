import pytest

from lwptv_lightning.layers import is_matrix, is_pointwise


@pytest.mark.parametrize(
    ("name", "shape", "is_one"),
    [
        ("fc.weight", (4, 2), True),
        ("positions", (0, 3), True),
        ("conv.weight", (4, 2, 1), True),
        ("conv.weight", (4, 2, 1, 1), True),
        ("conv.weight", (4, 2, 3, 1), False),
        ("depthwise.weight", (4, 1, 1, 1), False),
        ("temperature", (4, 2, 1, 1), False),
        ("norm.weight", (4,), False),
        ("scale", (), False),
    ],
)
def test_matrices_are_told_by_shape_and_name(name, shape, is_one):
    assert is_matrix(shape, name) == is_one
    assert is_pointwise(name, shape) == (is_one and len(shape) > 2)


def test_globs_leave_matrices_out():
    names = ("blocks.0.fc.weight", "head.weight", "token_embedding.weight")
    wanted = [name for name in names if is_matrix((3, 2), name, ("*.weight",), ("*embedding*", "head.weight"))]
    assert wanted == ["blocks.0.fc.weight"]

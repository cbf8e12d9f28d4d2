import pytest
import torch

from lwptv_lightning import MergeRecipe, TaskVectors, merge

SHAPES = {"fc.weight": (3, 4), "head.weight": (2, 4), "fc.bias": (3,), "conv.weight": (3, 2, 1, 1), "gain": ()}


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    tasks = {task: {name: torch.randn(s, generator=generator) for name, s in SHAPES.items()} for task in "ab"}
    return TaskVectors.open(base, tasks)


@pytest.mark.parametrize(
    ("patterns", "matrices"),
    [
        ({}, {"fc.weight", "head.weight"}),
        ({"exclude": ["head.*"]}, {"fc.weight"}),
        ({"exclude": ["*"]}, set()),
    ],
)
def test_only_tensors_of_two_dimensions_that_are_not_excluded_are_matrices(patterns, matrices, vectors):
    # TSV-M decomposes matrices, and averages everything else.
    merged = merge(vectors, MergeRecipe({"name": "tsv_m", **patterns}, scale=1.0))
    averaged = {name for name in SHAPES if torch.allclose(merged[name], vectors.stack(name).mean(0), atol=1e-6)}
    assert set(SHAPES) - averaged == matrices

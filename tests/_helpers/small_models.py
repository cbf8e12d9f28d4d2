"""Models small enough to be merged by hand, and the steps of merging rules written as plain loops over lists."""

import warnings
from collections.abc import Sequence

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from lwptv_lightning import MergeRecipe, TaskVectors, merge

Rows = list[list[float]]
"""One flat task vector for each task."""

quick = settings(max_examples=25, derandomize=True, deadline=None, database=None)

# Eighths, so that sums are exact; few of them, so that zeros, ties and tied votes are frequent.
_VALUES = st.sampled_from([-2.0, -1.0, -0.625, -0.125, 0.0, 0.0, 0.125, 0.625, 1.0, 2.0])


@st.composite
def task_rows(draw, max_tasks: int = 4, max_size: int = 14) -> Rows:
    size = draw(st.integers(1, max_size))
    return draw(st.lists(st.lists(_VALUES, min_size=size, max_size=size), min_size=1, max_size=max_tasks))


def random_rows(tasks: int, size: int, seed: int = 0) -> Rows:
    """Values without ties or zeros."""
    return torch.randn(tasks, size, generator=torch.Generator().manual_seed(seed)).tolist()


def model(row: Sequence[float]) -> dict[str, Tensor]:
    """Lay a flat vector out as a scalar, a vector and a matrix, as far as it reaches."""
    values = torch.tensor(row)
    tensors = {"a": values[0].clone(), "b": values[1:4].clone(), "c": values[4:].reshape(1, -1).clone()}
    return {name: tensor for name, tensor in tensors.items() if tensor.numel()}


def one_tensor(row: Sequence[float]) -> dict[str, Tensor]:
    return {"w": torch.tensor(row)}


def vectors_of(rows: Rows, layout=model) -> TaskVectors:
    """Task vectors over a base of zeros."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="task .* equals the base")
        base = {name: torch.zeros_like(tensor) for name, tensor in layout(rows[0]).items()}
        return TaskVectors.open(base, {f"task{index}": layout(row) for index, row in enumerate(rows)})


def merged_row(rows: Rows, rule, layout=model, task: str | None = None, dtype=torch.float32) -> list[float]:
    """Merge with scale 1 and return the merged task vector as a flat list."""
    result = merge(vectors_of(rows, layout), MergeRecipe(rule=rule, scale=1.0), task=task, dtype=dtype)
    return [value for tensor in result.values() for value in tensor.flatten().tolist()]


def trimmed(row: Sequence[float], density: float) -> list[float]:
    """Trim one flat task vector as the authors of TIES do."""
    if density == 1:
        return list(row)
    threshold = sorted(map(abs, row))[len(row) - int(len(row) * density) - 1]
    return [value if abs(value) >= threshold else 0.0 for value in row]


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def reduced(column: Sequence[float], elected: int, reduce: str) -> float:
    agreeing = [value for value in column if sign(value) == elected]
    if not agreeing:
        return 0.0
    if reduce == "max":
        return elected * max(map(abs, agreeing))
    return sum(agreeing) / (len(agreeing) if reduce == "mean" else 1)


def ties(rows: Rows, density: float, reduce: str) -> list[float]:
    """Trim, elect and merge whole flat task vectors."""
    columns = list(zip(*[trimmed(row, density) for row in rows], strict=True))
    votes = [sign(sum(column)) for column in columns]
    majority = 1 if sum(votes) > 0 else -1
    return [reduced(column, vote or majority, reduce) for column, vote in zip(columns, votes, strict=True)]


def in_consensus(rows: Rows, merged: Sequence[float], tall_lambda: float, min_tasks: int) -> list[float]:
    """Keep the weights of ``merged`` that matter to enough tasks."""

    def mattering(index: int) -> int:
        return sum(abs(row[index]) > tall_lambda * abs(merged[index] - row[index]) for row in rows)

    return [value if mattering(index) >= min_tasks else 0.0 for index, value in enumerate(merged)]


def middle(row: Sequence[float], density: float, outliers: float) -> list[float]:
    """Keep what is neither among the largest nor among the smallest magnitudes of a tensor."""
    kept = int(density * len(row))
    largest = min(int(outliers * len(row)), len(row) - kept)
    ascending = sorted(range(len(row)), key=lambda index: (abs(row[index]), index))
    chosen = set(ascending[len(row) - largest - kept : len(row) - largest])
    return [value if index in chosen else 0.0 for index, value in enumerate(row)]

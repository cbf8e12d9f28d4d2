"""The inner operations, one by one, on what the engine gives them: a block of 2 MiB, or one task's tensor.

pip install "lwptv-lightning[bench]"
pytest benchmarks/bench_operations.py --benchmark-columns=min,median,rounds --benchmark-sort=name
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from lwptv_lightning import TaskVectors
from lwptv_lightning.engine import Stream, keep_freed_memory, order_statistics
from lwptv_lightning.engine.blocks import spans
from lwptv_lightning.functional import (
    combine_agreeing,
    elect_signs,
    keep_middle_,
    random_keep,
    sum_tasks,
    tall_masks,
    trim_,
)
from lwptv_lightning.saliency.statistics import _sums
from lwptv_lightning.task_vectors import part, whole

TASKS = 8
SHAPE = (1024, 1024)  # of a tensor; the model has four of them
LIKE = torch.empty(0)
BLOCK = next(spans(SHAPE[0] * SHAPE[1], TASKS * LIKE.element_size(), block_bytes=1 << 21))
ROUNDS = 100


@pytest.fixture(scope="module", autouse=True)
def freed_memory() -> None:
    """As in the engine, which does this before it works on blocks."""
    keep_freed_memory()


@pytest.fixture(scope="module")
def vectors() -> TaskVectors:
    """A model in memory, large enough that thresholds are sought with a sample."""
    generator = torch.Generator().manual_seed(0)
    names = [f"layer{number}.weight" for number in range(4)]
    base = {name: 0.02 * torch.randn(SHAPE, generator=generator) for name in names}
    experts = {
        f"task{number}": {
            name: values + 1e-3 * torch.randn(SHAPE, generator=generator) * torch.rand(SHAPE, generator=generator)
            for name, values in base.items()
        }
        for number in range(TASKS)
    }
    return TaskVectors.open(base, experts)


@pytest.fixture(scope="module")
def tau(vectors: TaskVectors) -> Tensor:
    """A block of the task vectors, ``(T, n)``."""
    return part(vectors.open_stack(vectors.names[0]), BLOCK, LIKE)


@pytest.fixture(scope="module")
def thresholds(tau: Tensor) -> Tensor:
    return tau.abs().kthvalue(int(0.8 * tau.shape[1]), dim=1).values


@pytest.fixture(scope="module")
def trimmed(tau: Tensor, thresholds: Tensor) -> Tensor:
    return trim_(tau.clone(), thresholds)


def in_place(benchmark: BenchmarkFixture, operation: Callable[..., Any], tau: Tensor, *others: object) -> None:
    """Measure an operation that writes to its first argument, and give it a copy each time."""
    benchmark.pedantic(operation, setup=lambda: ((tau.clone(), *others), {}), rounds=ROUNDS, warmup_rounds=3)


def test_read_part(benchmark: BenchmarkFixture, vectors: TaskVectors) -> None:
    benchmark(part, vectors.open_stack(vectors.names[0]), BLOCK, LIKE)


def test_sum_tasks(benchmark: BenchmarkFixture, tau: Tensor) -> None:
    benchmark(sum_tasks, tau)


def test_statistics_sums(benchmark: BenchmarkFixture, tau: Tensor) -> None:
    in_place(benchmark, _sums, tau)


def test_trim(benchmark: BenchmarkFixture, tau: Tensor, thresholds: Tensor) -> None:
    in_place(benchmark, trim_, tau, thresholds)


def test_elect_signs(benchmark: BenchmarkFixture, trimmed: Tensor) -> None:
    benchmark(elect_signs, trimmed, 1.0)


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_combine_agreeing(benchmark: BenchmarkFixture, trimmed: Tensor, reduce: str) -> None:
    benchmark(combine_agreeing, trimmed, elect_signs(trimmed, 1.0), reduce)


def test_tall_masks(benchmark: BenchmarkFixture, tau: Tensor) -> None:
    benchmark(tall_masks, tau, sum_tasks(tau), 0.4)


@pytest.mark.parametrize("probability", [0.5, 0.1])
def test_random_keep(benchmark: BenchmarkFixture, vectors: TaskVectors, probability: float) -> None:
    benchmark(random_keep, BLOCK.stop, probability, 0, vectors.tasks, vectors.names[0])


def test_keep_middle_of_a_tensor(benchmark: BenchmarkFixture, vectors: TaskVectors) -> None:
    in_place(benchmark, keep_middle_, whole(vectors.open_stack(vectors.names[0]).only(0), LIKE), 0.85, 0.01)


def test_order_statistics_of_a_model(benchmark: BenchmarkFixture, vectors: TaskVectors) -> None:
    stream = Stream.of(vectors)
    order = int(0.8 * stream.elements)
    benchmark.pedantic(
        order_statistics, args=(stream, [order], lambda block: block.tau.abs_()), rounds=5, warmup_rounds=1
    )

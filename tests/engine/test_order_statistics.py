from collections import Counter
from importlib import import_module

import pytest
import torch
from _helpers.small_models import quick, random_rows, task_rows, vectors_of
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import TaskVectors
from lwptv_lightning.engine import Execution, Stream, kth_smallest_magnitude, order_statistics
from lwptv_lightning.functional import as_rows, ranked_values

_order_statistics = import_module("lwptv_lightning.engine.order_statistics")
DTYPES = [torch.float32, torch.float64]


def flat(vectors):
    return torch.cat([as_rows(vectors.stack(name)) for name in vectors.names], dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@quick
@given(task_rows(), st.data())
def test_the_kth_smallest_magnitude_is_that_of_a_full_sort(dtype, rows, data):
    vectors = Stream.of(vectors_of(rows), dtype=dtype)
    k = data.draw(st.integers(1, len(rows[0])))
    found = kth_smallest_magnitude(vectors, k)
    assert found.dtype == dtype
    assert torch.equal(found, flat(vectors).abs().sort(dim=1).values[:, k - 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1.0, 1e20])
def test_the_kth_smallest_value_orders_negative_ones_too(dtype, scale):
    rows = (torch.tensor(random_rows(3, 200)) * scale).tolist()
    vectors = Stream.of(vectors_of(rows), dtype=dtype)
    ordered = flat(vectors).sort(dim=1).values
    ranks = [1, 2, 57, 100, 199, 200]
    found = order_statistics(vectors, ranks, lambda block: block.tau)
    for k, values in zip(ranks, found, strict=True):
        assert torch.equal(values, ordered[:, k - 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbouring_floats_are_told_apart(dtype):
    vectors = Stream.of(vectors_of([[1.0] * 6]), dtype=dtype)
    one = torch.ones((), dtype=dtype)
    above = torch.nextafter(one, one * 2)

    def factor(name):
        return above if name == "c" else -above if name == "a" else one

    values = torch.cat([as_rows(vectors.stack(n) * factor(n)) for n in vectors.names], dim=1).sort(dim=1).values
    found = order_statistics(vectors, range(1, 7), lambda block: block.tau * factor(block.name))
    assert torch.equal(found, values.T)


def test_a_transform_may_give_another_number_of_rows():
    vectors = Stream.of(vectors_of(random_rows(4, 30)))
    (found,) = order_statistics(vectors, [11], lambda block: block.tau.sum(0, keepdim=True))
    expected = torch.cat([as_rows(vectors.stack(n).sum(0, keepdim=True)) for n in vectors.names], dim=1)
    assert torch.equal(found, expected.sort(dim=1).values[:, 10])


def test_magnitudes_may_be_transformed_too():
    vectors = Stream.of(vectors_of(random_rows(2, 20)))
    found = kth_smallest_magnitude(vectors, 20, lambda block: block.tau * 2)
    assert torch.equal(found, 2 * flat(vectors).abs().amax(1))


@pytest.mark.parametrize("k", [0, -1, 7])
def test_refuses_a_rank_that_does_not_exist(k):
    vectors = Stream.of(vectors_of([[1.0] * 6]))
    with pytest.raises(ValueError, match=r"k must lie in 1 \.\.\. 6"):
        kth_smallest_magnitude(vectors, k)


SHAPES_OF_VALUES = {
    "normal": lambda noise: noise,
    "heavy tails": lambda noise: noise**5,
    "many zeros": lambda noise: noise * (noise.abs() > 1.5),
    "many ties": lambda noise: (noise * 2).round(),
    "bfloat16": lambda noise: noise.bfloat16().float(),
    "all equal": lambda noise: torch.full_like(noise, -2.5),
    "zeros of both signs and a few more": lambda noise: noise.sign() * (noise.abs() > 3.9),
    "huge and tiny": lambda noise: noise * 10 ** (20 * noise.sign()),
}


@pytest.fixture
def small_search(monkeypatch):
    """Sample, brackets and blocks so small that a small model needs several of each."""
    monkeypatch.setattr(_order_statistics, "_SAMPLE", 400)
    monkeypatch.setattr(_order_statistics, "_MOST_BINS", 64)


@pytest.mark.parametrize("shape", SHAPES_OF_VALUES.values(), ids=SHAPES_OF_VALUES)
@pytest.mark.parametrize("margins", [None, (1, 1), (1, 20), (390, 390)], ids=str)
def test_a_sample_only_shortens_the_search(shape, margins, small_search, monkeypatch):
    if margins is not None:  # most ranks lie outside
        monkeypatch.setattr(_order_statistics, "sample_margins", lambda k, total, size: margins)
    states = [shape(torch.randn(6000, generator=torch.Generator().manual_seed(seed))) for seed in range(2)]
    tasks = {str(seed): {"a": state[:5000], "b": state[5000:]} for seed, state in enumerate(states)}
    vectors = Stream.of(
        TaskVectors.open({"a": torch.zeros(5000), "b": torch.zeros(1000)}, tasks), execution=Execution(block_bytes=4096)
    )
    ordered = torch.stack(states).sort(dim=1).values
    ranks = [1, 2, 1000, 3000, 4800, 5999, 6000]
    found = order_statistics(vectors, ranks, lambda block: block.tau)
    assert torch.equal(found, ordered[:, [k - 1 for k in ranks]].T)
    # One row is searched in its own way.
    assert ranked_values(states[0], ranks) == [float(ordered[0, k - 1]) for k in ranks]


def test_a_good_sample_makes_one_pass_enough():
    count = 3_000_000  # so many that a sample is worth its while
    values = torch.randn(count, generator=torch.Generator().manual_seed(0))
    vectors = Stream.of(TaskVectors.open({"a": torch.zeros(count)}, {"t": {"a": values}}))
    read = Counter()

    def look(block):
        read[block.start] += 1
        return block.tau

    found = kth_smallest_magnitude(vectors, 2_400_000, look)
    assert found == values.abs().kthvalue(2_400_000).values
    assert len(read) > 2
    assert {times for start, times in read.items() if start > 0} == {1}
    assert read[0] == 2  # the sample begins there too


SIZES_OF_A_SAMPLED_MODEL = {"a": 3, "b": 1_500_001, "c": 700_000}
"""More elements than a search goes without a sample for."""


@pytest.fixture(scope="module")
def large():
    """Task vectors of two tasks: of many values, and of few."""
    generator = torch.Generator().manual_seed(0)
    count = sum(SIZES_OF_A_SAMPLED_MODEL.values())
    flat = [torch.randn(count, generator=generator), torch.randn(count, generator=generator).bfloat16().float()]
    flat[1][::3] = 0
    sizes = list(SIZES_OF_A_SAMPLED_MODEL.values())
    states = [dict(zip(SIZES_OF_A_SAMPLED_MODEL, row.split(sizes), strict=True)) for row in flat]
    base = {name: torch.zeros(size) for name, size in SIZES_OF_A_SAMPLED_MODEL.items()}
    ordered = torch.stack([row.abs().sort().values for row in flat])
    return TaskVectors.open(base, dict(zip("xy", states, strict=True))), ordered


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("margins", [None, (1, 1), (1, 90), (430_000, 440_000)], ids=str)
def test_kernels_search_in_brackets_of_a_sample(margins, threads, large, use_threads, monkeypatch):
    if margins is not None:  # the brackets miss
        monkeypatch.setattr(_order_statistics, "sample_margins", lambda k, total, size: margins)
    gathered = []
    gather = _order_statistics.gather_fused
    monkeypatch.setattr(
        _order_statistics, "gather_fused", lambda *given: gathered.append(given[2].stop) or gather(*given)
    )
    use_threads(threads)
    vectors, ordered = large
    stream = Stream.of(vectors, execution=Execution(compiled=True))
    for k in (1_760_001,) if margins else (1, 300_000, 1_760_001, ordered.shape[1]):
        assert torch.equal(kth_smallest_magnitude(stream, k), ordered[:, k - 1])
    assert gathered

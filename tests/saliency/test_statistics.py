import pytest
import torch

from lwptv_lightning import TaskVectors, collect_statistics, layers_from_names


def dyadic(shape, generator):
    """Small multiples of 1/8: their sums and products are exact in float32."""
    return torch.randint(-16, 17, shape, generator=generator) / 8


@pytest.fixture(scope="module")
def large_vectors():
    """Three tasks; one tensor is larger than a block of the stream, one is 0-d."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (300, 230), "a.bias": (7,), "b.weight": (3, 5, 2), "scale": ()}
    base = {name: dyadic(shape, generator) for name, shape in shapes.items()}
    tasks = {task: {name: base[name] + dyadic(shape, generator) for name, shape in shapes.items()} for task in "xyz"}
    return TaskVectors.open(base, tasks)


def slow_statistics(vectors, tensors):
    """Sum up one layer in plain Python."""
    t_range = range(len(vectors))
    sums = {
        "numel": 0,
        "base_squared": 0.0,
        "gram": [[0.0 for _ in t_range] for _ in t_range],
        "l1": [0.0 for _ in t_range],
        "agreeing": [0 for _ in t_range],
        "opposing": [0 for _ in t_range],
    }
    for name in tensors:
        base = vectors.base(name).flatten().tolist()
        rows = [
            [x - y for x, y in zip(vectors.expert(task, name).flatten().tolist(), base, strict=True)]
            for task in vectors.tasks
        ]
        for index, theta in enumerate(base):
            tau = [row[index] for row in rows]
            total = sum(tau)
            sums["numel"] += 1
            sums["base_squared"] += theta * theta
            for s in t_range:
                sums["l1"][s] += abs(tau[s])
                sums["agreeing"][s] += tau[s] * total > 0
                sums["opposing"][s] += tau[s] * total < 0
                for t in t_range:
                    sums["gram"][s][t] += tau[s] * tau[t]
    return sums


def test_every_sum_equals_the_slow_loop(large_vectors):
    stats = collect_statistics(large_vectors, layers_from_names(large_vectors.names))
    assert stats.layers.names == ("a", "b", "scale")
    for index, layer in enumerate(stats.layers):
        slow = slow_statistics(large_vectors, layer.tensors)
        assert stats.numel[index] == slow["numel"]
        assert stats.base_squared[index] == slow["base_squared"]
        assert stats.gram[index].tolist() == slow["gram"]
        for field in ("l1", "agreeing", "opposing"):
            assert getattr(stats, field)[:, index].tolist() == slow[field], field


def test_derived_sums(large_vectors):
    stats = collect_statistics(large_vectors, layers_from_names(large_vectors.names))
    for index, layer in enumerate(stats.layers):
        tau = torch.cat([large_vectors.stack(name).double().reshape(3, -1) for name in layer.tensors], dim=1)
        mean = tau.mean(0)
        torch.testing.assert_close(stats.squared[:, index], tau.square().sum(1))
        torch.testing.assert_close(stats.mean_dot[:, index], (tau * mean).sum(1))
        torch.testing.assert_close(stats.mean_squared[index], mean.square().sum())


def test_sums_of_arbitrary_numbers_are_close_and_in_float64(vectors):
    stats = collect_statistics(vectors, layers_from_names(vectors.names, "tensor"))
    for index, layer in enumerate(stats.layers):
        slow = slow_statistics(vectors, layer.tensors)
        assert stats.l1[:, index].tolist() == pytest.approx(slow["l1"], rel=1e-5)
        torch.testing.assert_close(stats.gram[index], torch.tensor(slow["gram"]).double(), rtol=1e-4, atol=1e-6)
    assert {field.dtype for field in (stats.gram, stats.l1, stats.numel, stats.base_squared)} == {torch.float64}


def test_coarser_layers_hold_the_sums_of_finer_ones(vectors):
    fine, coarse = (collect_statistics(vectors, layers_from_names(vectors.names, g)) for g in ("tensor", "module"))
    assert len(coarse.layers) < len(fine.layers)
    for field in ("numel", "gram", "base_squared"):
        torch.testing.assert_close(getattr(fine, field).sum(0), getattr(coarse, field).sum(0))
    assert coarse.numel.sum() == sum(vectors.base(name).numel() for name in vectors.names)


def test_each_weight_is_read_once(counting_checkpoint, base_state, task_states):
    base, _ = counting_checkpoint(base_state)
    task, reads = counting_checkpoint(task_states["a"])
    vectors = TaskVectors.open(base, {"a": task})
    reads.clear()
    collect_statistics(vectors, layers_from_names(vectors.names))
    assert reads == dict.fromkeys(base_state, 1)


def test_layers_may_hold_tensors_that_are_not_merged(base_state, task_states):
    vectors = TaskVectors.open(base_state, task_states, exclude=("head.*",))
    stats = collect_statistics(vectors, layers_from_names(base_state))
    assert stats.layers.names == ("stem", "fc", "gain")


def test_merged_tensor_in_no_layer(vectors):
    layers = layers_from_names(["stem.weight", "stem.bias", "fc.weight"])
    with pytest.raises(ValueError, match=r"in no layer: gain, head\.weight\. .*exclude"):
        collect_statistics(vectors, layers)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_asked_for_products_changes_nothing_and_stays(precision, large_vectors):
    layers = layers_from_names(large_vectors.names)
    expected = collect_statistics(large_vectors, layers).gram
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert torch.equal(collect_statistics(large_vectors, layers).gram, expected)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)

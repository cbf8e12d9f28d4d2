import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rules.golden import golden_vectors
from rules.small_models import quick, random_rows, task_rows, vectors_of

from lwptv_lightning.pruned_task_vectors import PrunedTaskVectors
from lwptv_lightning.rules._ops import (
    as_rows,
    combine_agreeing,
    count_elements,
    elect_signs,
    keep_largest_,
    kth_smallest,
    kth_smallest_magnitude,
    random_keep,
    rescale_kept,
    smallest_kept,
    trim_,
    trim_thresholds,
)

DTYPES = [torch.float32, torch.float64]


def flat(vectors):
    return torch.cat([as_rows(vectors.stack(name)) for name in vectors.names], dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@quick
@given(task_rows(), st.data())
def test_the_kth_smallest_magnitude_is_that_of_a_full_sort(dtype, rows, data):
    vectors = PrunedTaskVectors(vectors_of(rows), dtype=dtype)
    k = data.draw(st.integers(1, len(rows[0])))
    found = kth_smallest_magnitude(vectors, k)
    assert found.dtype == dtype
    assert torch.equal(found, flat(vectors).abs().sort(dim=1).values[:, k - 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1.0, 1e20])
def test_the_kth_smallest_value_orders_negative_ones_too(dtype, scale):
    rows = (torch.tensor(random_rows(3, 200)) * scale).tolist()
    vectors = PrunedTaskVectors(vectors_of(rows), dtype=dtype)
    ordered = flat(vectors).sort(dim=1).values
    for k in (1, 2, 57, 100, 199, 200):
        assert torch.equal(kth_smallest(vectors, k, lambda tau, name: tau), ordered[:, k - 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbouring_floats_are_told_apart(dtype):
    vectors = PrunedTaskVectors(vectors_of([[1.0] * 6]), dtype=dtype)
    one = torch.ones((), dtype=dtype)
    above = torch.nextafter(one, one * 2)

    def transform(tau, name):
        return tau * (above if name == "c" else -above if name == "a" else one)

    values = torch.cat([as_rows(transform(vectors.stack(n), n)) for n in vectors.names], dim=1).sort(dim=1).values
    for k in range(1, 7):
        assert torch.equal(kth_smallest(vectors, k, transform), values[:, k - 1])


def test_a_transform_may_give_another_number_of_rows():
    vectors = PrunedTaskVectors(vectors_of(random_rows(4, 30)))
    found = kth_smallest(vectors, 11, lambda tau, name: tau.sum(0, keepdim=True))
    expected = torch.cat([as_rows(vectors.stack(n).sum(0, keepdim=True)) for n in vectors.names], dim=1)
    assert torch.equal(found, expected.sort(dim=1).values[:, 10])


def test_magnitudes_may_be_transformed_too():
    vectors = PrunedTaskVectors(vectors_of(random_rows(2, 20)))
    found = kth_smallest_magnitude(vectors, 20, lambda tau, name: tau * 2)
    assert torch.equal(found, 2 * flat(vectors).abs().amax(1))


@pytest.mark.parametrize("k", [0, -1, 7])
def test_refuses_a_rank_that_does_not_exist(k):
    vectors = PrunedTaskVectors(vectors_of([[1.0] * 6]))
    with pytest.raises(ValueError, match=r"k must lie in 1 \.\.\. 6"):
        kth_smallest_magnitude(vectors, k)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.999, 1.0])
def test_a_trim_keeps_one_more_than_the_fraction(density):
    vectors = PrunedTaskVectors(golden_vectors("pair", [1]))
    count = count_elements(vectors)
    kept = trim_(flat(vectors), trim_thresholds(vectors, density)).count_nonzero()
    assert kept == min(int(count * density) + 1, count)
    assert smallest_kept(count, density) == max(count - int(count * density), 1)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4)])
def test_stacks_of_any_shape_become_rows(shape):
    tau = torch.ones((2, *shape))
    assert as_rows(tau).shape == (2, tau[0].numel())
    assert keep_largest_(tau, 1.0).shape == tau.shape


@pytest.mark.parametrize("tie", [1.0, -1.0])
def test_a_tied_vote_takes_the_given_sign(tie):
    assert elect_signs(torch.tensor([[1.0, 0.0, -2.0], [-1.0, 0.0, 1.0]]), tie).tolist() == [tie, tie, -1.0]


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_nothing_that_agrees_gives_zero(reduce):
    tau = torch.tensor([[0.0, -1.0], [0.0, -3.0]])
    assert combine_agreeing(tau, torch.tensor([1.0, 1.0]), reduce).tolist() == [0.0, 0.0]


def test_a_probability_for_each_element_is_kept_to():
    chances = torch.tensor([0.0, 1.0]).repeat(500)
    assert torch.equal(random_keep((1000,), chances, 3), chances.bool())


def test_rescaling_leaves_dropped_elements_exactly_zero():
    tau, keep = torch.tensor([[1.0, -2.0]]), torch.tensor([[True, False]])
    assert rescale_kept(tau, keep, torch.tensor([[0.25, 0.5]])).tolist() == [[4.0, 0.0]]

import pytest
import torch

from lwptv_lightning.functional import as_rows, per_row, sum_tasks, weighted_sum


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4)])
def test_stacks_of_any_shape_become_rows(shape):
    tau = torch.ones((2, *shape))
    assert as_rows(tau).shape == (2, tau[0].numel())


@pytest.mark.parametrize("tasks", [1, 2, 5, 8, 16, 33])
def test_the_sum_over_tasks_does_not_depend_on_the_number_of_elements(tasks):
    tau = torch.randn(tasks, 100, generator=torch.Generator().manual_seed(0))
    total = sum_tasks(tau)
    assert torch.equal(torch.cat([sum_tasks(part.contiguous()) for part in tau.split([1, 7, 92], dim=1)]), total)
    torch.testing.assert_close(total, tau.double().sum(0).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_number_for_each_row_acts_on_rows_of_any_shape(shape, dtype):
    tau = torch.ones(3, *shape, dtype=dtype)
    scaled = per_row(torch.tensor([1, 2, 3]), tau) * tau
    assert scaled.dtype == dtype
    assert [row.unique().tolist() for row in scaled] == [[1.0], [2.0], [3.0]]


def test_a_sum_leaves_its_terms_alone():
    tau = torch.ones(2, 3)
    sum_tasks(tau).fill_(7)
    assert torch.equal(tau, torch.ones(2, 3))


def test_a_weighted_sum_multiplies_and_then_adds_from_first_to_last():
    parts, weights = torch.randn(3, 50), torch.tensor([0.3, 0.0, 1.7])
    expected = parts[0] * weights[0] + 0.0 + parts[2] * weights[2]
    assert torch.equal(weighted_sum(parts, weights), expected)
    assert torch.equal(weighted_sum(parts, weights.bool()), parts[0] + parts[2])


def test_a_weight_of_zero_counts_as_zeros_whatever_the_row_holds():
    assert weighted_sum(torch.tensor([[1.0], [torch.inf]]), torch.tensor([2.0, 0.0])).tolist() == [2.0]

import pytest
import torch

from lwptv_lightning.functional import as_rows, per_row, sum_tasks


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

import pytest
import torch

from lwptv_lightning.functional import as_rows, combine_agreeing, elect_signs


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4)])
def test_stacks_of_any_shape_become_rows(shape):
    tau = torch.ones((2, *shape))
    assert as_rows(tau).shape == (2, tau[0].numel())


@pytest.mark.parametrize("tie", [1.0, -1.0])
def test_a_tied_vote_takes_the_given_sign(tie):
    assert elect_signs(torch.tensor([[1.0, 0.0, -2.0], [-1.0, 0.0, 1.0]]), tie).tolist() == [tie, tie, -1.0]


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_nothing_that_agrees_gives_zero(reduce):
    tau = torch.tensor([[0.0, -1.0], [0.0, -3.0]])
    assert combine_agreeing(tau, torch.tensor([1.0, 1.0]), reduce).tolist() == [0.0, 0.0]

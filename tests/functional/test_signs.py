import pytest
import torch

from lwptv_lightning.functional import combine_agreeing, elect_signs


@pytest.mark.parametrize("tie", [1.0, -1.0])
def test_a_tied_vote_takes_the_given_sign(tie):
    assert elect_signs(torch.tensor([[1.0, 0.0, -2.0], [-1.0, 0.0, 1.0]]), tie).tolist() == [tie, tie, -1.0]


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_nothing_that_agrees_gives_zero(reduce):
    tau = torch.tensor([[0.0, -1.0], [0.0, -3.0]])
    assert combine_agreeing(tau, torch.tensor([1.0, 1.0]), reduce).tolist() == [0.0, 0.0]

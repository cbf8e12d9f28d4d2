import torch
from torch import nn

from lwptv_lightning.checkpoints.adapter_parameters import parameters_of


class Experts(nn.Module):
    def __init__(self, is_transposed):
        super().__init__()
        self.gate_up = nn.Parameter(torch.zeros(2, 4, 4))
        self.down = nn.Parameter(torch.zeros(2, 4, 4))
        self.is_transposed = is_transposed


SQUARE = {"gate_up": (2, 4, 4), "down": (2, 4, 4)}
PAIR = ((6, 4), (4, 6))


def found(factors, parameters, module=None):
    told = parameters_of(factors, parameters, module)
    return None if told is None else [(each.name, each.depth, each.transposed) for each in told]


def test_square_parameters_are_told_by_their_module_alone():
    assert found([PAIR, PAIR], SQUARE) is None
    assert found([PAIR, PAIR], SQUARE, Experts(True)) == [("down", 0, True), ("gate_up", 1, True)]
    assert found([PAIR, PAIR], SQUARE, Experts(False)) == [("down", 0, False), ("gate_up", 1, False)]


def test_one_that_is_not_square_tells_how_all_stand():
    shapes = {"gate_up": (2, 4, 8), "down": (2, 4, 4)}  # (experts, in, out)
    assert found([PAIR, ((6, 4), (8, 6))], shapes) == [("down", 0, True), ("gate_up", 1, True)]


def test_a_matrix_is_never_turned():
    assert found([((3, 4), (4, 3))], {"weight": (4, 4)}) == [("weight", 0, False)]
    assert found([((3, 5), (4, 3))], {"weight": (5, 4)}) is None


def test_factors_that_fit_none():
    assert found([PAIR], SQUARE) is None  # two parameters, and factors for one
    assert found([((5, 4), (4, 5))], {"down": (2, 4, 4)}) is None  # rank 5 of two experts
    assert found([((6, 4), (4, 6))], {"down": (2, 4)}) is None
    assert found([((6, 4), (4, 6))], {"down": (4,)}) is None

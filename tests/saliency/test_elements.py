import math
from fractions import Fraction

import pytest
import torch

from lwptv_lightning import ElementPruning


@pytest.mark.parametrize("ratio", [0, 0.29, 0.5, 0.999, 1])
def test_element_pruning_drops_exactly_the_smallest(ratio):
    tau = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    pruned = ElementPruning(ratio=ratio).drop_smallest_(tau.clone())
    dropped = math.floor(Fraction(str(ratio)) * 100)
    for before, after in zip(tau.tolist(), pruned.tolist(), strict=True):
        survivors = sorted(range(100), key=lambda index: abs(before[index]))[dropped:]
        assert after == [value if index in survivors else 0.0 for index, value in enumerate(before)]


def test_of_equal_elements_the_first_are_dropped():
    pruned = ElementPruning(ratio=0.5).drop_smallest_(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    assert pruned.tolist() == [[0.0, 0.0, 1.0, -1.0]]

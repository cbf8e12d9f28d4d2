import pytest
import torch

from lwptv_lightning.inspection.permuted import is_permuted


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w[torch.randperm(len(w), generator=torch.Generator().manual_seed(1))] + 0.1 * draw(*w.shape, seed=2),
        lambda w: w[:, torch.randperm(w.shape[1], generator=torch.Generator().manual_seed(1))],
        lambda w: w.flatten().flip(0).reshape(w.shape),
    ],
    ids=["rows, fine-tuned", "columns", "elements"],
)
@pytest.mark.parametrize("shape", [(5000, 20), (40, 30), (16, 4, 3, 3), (5, 512)])
def test_what_stands_elsewhere_is_seen(change, shape):
    weight = draw(*shape)
    assert is_permuted(weight, change(weight))


@pytest.mark.parametrize("shape", [(400, 200), (30,), (1, 50), (5, 512), (2, 512), (8, 1, 3, 3)])
def test_another_draw_is_no_permutation(shape):
    assert not is_permuted(draw(*shape), draw(*shape, seed=3))


def test_a_permuted_vector():
    assert is_permuted(draw(30), draw(30).flip(0))

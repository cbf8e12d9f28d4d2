import pickle

import pytest
import torch

from lwptv_lightning import open_checkpoint
from lwptv_lightning.checkpoints.adapter_changes import Experts, Magnitudes, Product, Rows, Scaled

W = torch.arange(12.0, dtype=torch.float64).reshape(3, 4) + 1


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    shapes = {"a": (2, 4), "b": (3, 2), "half": (2, 2), "e": (2, 1), "m": (3,), "n": (4,), "rows": (2, 4)}
    return open_checkpoint({name: torch.randn(shape) for name, shape in shapes.items()})


def test_a_product(adapter):
    a, b = adapter.read("a").double(), adapter.read("b").double()
    plain = Product("a", "b", 0.5, (3, 4))
    torch.testing.assert_close(plain.difference(adapter, lambda: W), b @ a / 2)
    turned = Product("a", "b", 0.5, (4, 3), transposed=True)
    torch.testing.assert_close(turned.difference(adapter, lambda: W), (b @ a).T / 2)
    scaled = Product("a", "b", 1.0, (3, 4), values="e")
    torch.testing.assert_close(
        scaled.difference(adapter, lambda: W), b @ torch.diag(adapter.read("e")[:, 0].double()) @ a
    )
    blocks = Product("half", "b", 1.0, (3, 4), blocks=(2, 1))
    top, bottom = adapter.read("half").double()
    dense = torch.stack([torch.cat([top, 0 * top]), torch.cat([0 * bottom, bottom])])
    torch.testing.assert_close(blocks.difference(adapter, lambda: W), b @ dense)


@pytest.mark.parametrize(("transposed", "magnitudes"), [(False, "m"), (True, "n")])
def test_magnitudes_are_the_lengths_of_what_becomes_of_each_output(adapter, transposed, magnitudes):
    weights = W.clone()
    a, b = ("b", "a") if transposed else ("a", "b")
    flat = {name: adapter.read(name).T if transposed else adapter.read(name) for name in "ab"}
    source = open_checkpoint(
        {**{name: tensor.contiguous() for name, tensor in flat.items()}, "m": adapter.read(magnitudes)}
    )
    change = Magnitudes(Product(a, b, 1.0, (3, 4), transposed), "m")
    made = weights + change.difference(source, lambda: weights)
    lengths = made.norm(dim=0 if transposed else 1)
    torch.testing.assert_close(lengths, source.read("m").double().abs())
    assert torch.equal(weights, W)  # unharmed
    assert change.shape == (3, 4)


def test_rows_take_the_place_of_others(adapter):
    change = Rows("rows", (2, 0), (3, 4))
    made = W + change.difference(adapter, lambda: W)
    torch.testing.assert_close(made[[2, 0]], adapter.read("rows").double())
    assert torch.equal(made[1], W[1])


def test_experts_count_fastest_in_b():
    a, b = torch.randn(6, 5), torch.randn(4, 6)  # three experts of rank 2
    adapter = open_checkpoint({"a": a, "b": b})
    made = Experts("a", "b", 2.0, (3, 4, 5), transposed=False).difference(adapter, lambda: W)
    turned = Experts("a", "b", 2.0, (3, 5, 4), transposed=True).difference(adapter, lambda: W)
    for expert in range(3):
        product = 2 * b[:, expert::3].double() @ a[2 * expert : 2 * expert + 2].double()
        torch.testing.assert_close(made[expert], product)
        torch.testing.assert_close(turned[expert], product.T)


def test_changes_go_to_other_processes(adapter):
    change = pickle.loads(pickle.dumps(Scaled("m", 3.0, (3,))))
    torch.testing.assert_close(change.difference(adapter, lambda: W), 3 * adapter.read("m").double())

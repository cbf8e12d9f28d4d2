"""Differences of stored tensors, bit for bit."""

import torch

from lwptv_lightning import TaskVectors
from lwptv_lightning.checkpoints import open_checkpoint
from lwptv_lightning.inspection.compare import TensorDifference, compare_pieces, vector_pieces


def whole(tensors):
    return ((name, slice(0, None), tensor.reshape(-1)) for name, tensor in tensors.items())


def compared(stored, made, held_in=()):
    return compare_pieces(open_checkpoint(stored), whole(made), held_in)


def test_pieces_of_one_tensor_are_added_up():
    stored = open_checkpoint({"w": torch.zeros(2, 3)})
    made = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, -3.0])
    pieces = [("w", slice(0, 4), made[:4]), ("w", slice(4, 6), made[4:])]
    assert compare_pieces(stored, pieces) == {"w": TensorDifference(2, 6, 3.0)}
    assert str(TensorDifference(2, 6, 3.0)) == "2 of 6 elements differ, by up to 3"


def test_every_bit_counts():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8):
        tensor = torch.tensor([0, 1, 1]).to(dtype)
        assert compared({"w": tensor}, {"w": tensor.clone()}) == {}
        assert compared({"w": tensor}, {"w": tensor.flip(0)})["w"].elements == 2
    assert compared({"w": torch.tensor([0.0])}, {"w": torch.tensor([-0.0])}) == {"w": TensorDifference(1, 1, 0.0)}
    nan = torch.tensor([torch.nan])
    assert compared({"w": nan}, {"w": nan.clone()}) == {}
    assert compared({"w": nan}, {"w": torch.zeros(1)})["w"].largest == torch.inf
    assert compared({"w": torch.zeros(0)}, {"w": torch.zeros(0)}) == {}


def test_values_that_were_held_in_a_narrower_dtype():
    made = torch.tensor([1 / 3, 2 / 3])
    stored = {"w": made.bfloat16().float()}
    assert compared(stored, {"w": made})["w"].elements == 2
    assert compared(stored, {"w": made}, [torch.float16, torch.bfloat16]) == {}


def test_a_task_vector_of_the_largest_entries():
    base, tuned = {"w": torch.zeros(4)}, {"w": torch.tensor([1.0, -2.0, 3.0, 0.5])}
    vectors = TaskVectors.open(base, {"a": tuned})

    def differing(entries, density=0.5):
        stored = open_checkpoint({"w": torch.tensor(entries)})
        return compare_pieces(stored, vector_pieces(stored, vectors, ["w"], density))

    assert differing([1.0, -2.0, 3.0, 0.5], 1.0) == {}
    assert differing([0.0, -2.0, 3.0, 0.0]) == {}
    assert differing([0.0, -2.0, 3.0, 0.0], 1.0)["w"].elements == 2
    assert differing([1.0, -2.0, 0.0, 0.0])["w"].elements == 1  # the largest is not among those that are kept
    assert differing([0.0, -2.5, 3.0, 0.0])["w"].largest == 0.5

import pytest
import torch

from lwptv_lightning.checkpoints.rebuilt import Named, Opaque, rebuilt, view_of

NUMBERS = torch.arange(4.0)
HOOKS = {}


def test_lazy_negation_is_kept():
    for how, more in (("tensor_v2", ()), ("tensor_v3", (Named("torch.float32"),))):
        found = rebuilt(how, (NUMBERS, 0, (4,), (1,), False, HOOKS, *more, {"neg": True}))
        assert torch.equal(found, -NUMBERS)
        with pytest.raises(ValueError, match="attributes that torch.save does not write"):
            rebuilt(how, (NUMBERS, 0, (4,), (1,), False, HOOKS, *more, {"other": True}))


def test_the_dtype_of_newer_tensors_stands_beside_their_bytes():
    raw = NUMBERS.view(torch.uint8)
    assert torch.equal(rebuilt("tensor_v3", (raw, 0, (4,), (1,), False, HOOKS, Named("torch.float32"))), NUMBERS)
    with pytest.raises(TypeError, match=r"torch\.load is no dtype"):
        rebuilt("tensor_v3", (raw, 0, (4,), (1,), False, HOOKS, Named("torch.load")))


def test_what_is_no_dense_tensor_stands_for_itself():
    assert rebuilt("sparse_tensor", ()).is_sparse
    assert rebuilt("qtensor", ()).is_sparse
    assert rebuilt("meta_tensor_no_storage", (Named("torch.float32"), (2**40,), (1,), False)).is_meta
    assert isinstance(rebuilt("nested_tensor", ()), Opaque)
    assert rebuilt("wrapper_subclass", (Named("torchao.Float8"), 3)).what == "torchao.Float8"


def test_a_view_beyond_what_is_stored():
    assert view_of(NUMBERS[1:], 0, (3,), (1,)).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"of shape \(4,\) reaches beyond its 3 stored numbers"):
        view_of(NUMBERS[1:], 0, (4,), (1,))

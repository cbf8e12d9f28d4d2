import torch

from lwptv_lightning import open_checkpoint
from lwptv_lightning.checkpoints import TensorHeader
from lwptv_lightning.libraries.folder import Wanted, misfit


def header(*shape):
    return TensorHeader(shape, torch.float32)


def test_a_misfit_is_named():
    assert misfit({"a": (1,), "b": (2, 3)}, {"a": header(1), "b": header(2, 3)}) is None
    assert misfit({"a": (1,), "b": (2,), "c": (1,)}, {"a": header(1)}) == "it would have 'b' too and 1 more"
    assert misfit({"a": (1,)}, {"a": header(1), "b": header(1)}) == "it would not have 'b'"
    assert misfit({"a": (1,)}, {"a": header(2)}) == "'a' would have shape (1,), not (2,)"


def test_a_model_is_as_stored_whatever_its_dtype():
    origin = open_checkpoint({"a": torch.ones(2), "b": torch.ones(3)})
    assert Wanted(origin, {"a": TensorHeader((2,), torch.float64), "b": header(3)}).is_as_stored
    assert not Wanted(origin, {"a": header(2)}).is_as_stored
    assert not Wanted(origin, {"a": header(2), "b": header(4)}).is_as_stored
    renamed = origin.renamed({"x.a": "a", "x.b": "b"})
    assert not Wanted(renamed, renamed.headers).is_as_stored

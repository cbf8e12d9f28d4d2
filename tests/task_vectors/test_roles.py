import pytest
import torch

from lwptv_lightning import TaskVectors
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.task_vectors import with_roles

BASE = {"w": torch.ones(2), "mean": torch.ones(2), "again": torch.ones(2), "table": torch.ones(2), "n": torch.tensor(3)}


@pytest.fixture
def vectors():
    return TaskVectors.open(BASE, {"a": {name: tensor * 2 for name, tensor in BASE.items()}})


def test_roles_are_what_is_told(vectors):
    made = with_roles(vectors, ["mean"], ["table"], {"again": "w"})
    assert made.names == ("w",)
    assert made.averaged == ("mean",)
    assert made.copied == ("n", "table")
    assert made.tied == {"again": "w"}
    assert made.names_of("w") == ("w", "again")
    assert vectors.names == ("w", "mean", "again", "table")


def test_roles_that_names_told_can_be_taken_back(vectors):
    made = with_roles(with_roles(vectors, ["mean"], ["table"], {"again": "w"}), [], [], {})
    assert (made.names, made.copied, made.averaged, made.tied) == (vectors.names, vectors.copied, (), {})


def test_tensors_that_are_not_there_are_refused(vectors):
    with pytest.raises(UnknownNameError, match=r"unknown tensor 'means'\. Did you mean 'mean'\?"):
        with_roles(vectors, ["means"], [], {})
    with pytest.raises(UnknownNameError, match="unknown tensor 'n'"):
        with_roles(vectors, [], ["n"], {})

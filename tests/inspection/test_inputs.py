"""What is not what it was is named, with where it is now."""

import pytest
import torch

from lwptv_lightning.checkpoints import Provenance, fingerprint, open_checkpoint, tensor_fingerprints
from lwptv_lightning.inspection.inputs import assigned, base_problem, input_problems, vector_base_problem

MADE = {"a": "1" * 64, "b": "2" * 64, "new": None}


@pytest.mark.parametrize(
    ("given", "problems", "assignment"),
    [
        ({"a": "1" * 64, "b": "2" * 64, "new": "9"}, {}, {"a": "a", "b": "b", "new": "new"}),
        (
            {"a": "3" * 64, "b": "2" * 64, "new": "9"},
            {"a": f"is not what was merged: fingerprint {'3' * 12}, expected {'1' * 12}."},
            None,
        ),
        (
            {"a": "2" * 64, "b": "1" * 64, "new": "9"},
            {"a": "holds the weights that were merged as 'b'.", "b": "holds the weights that were merged as 'a'."},
            {"a": "b", "b": "a", "new": "new"},
        ),
        (
            {"aa": "1" * 64, "b": "2" * 64, "new": "9"},
            {"a": "is missing; its weights are given as 'aa'.", "aa": "was not merged. Did you mean 'a'?"},
            {"a": "aa", "b": "b", "new": "new"},
        ),
        ({"a": "1" * 64, "b": "2" * 64}, {"new": "is missing."}, None),
    ],
)
def test_tasks(given, problems, assignment):
    assert input_problems(MADE, given) == problems
    assert assigned(MADE, given) == assignment


def test_a_base():
    assert base_problem(None, "1") is None
    assert base_problem("1", "1") is None
    assert base_problem("1" * 64, "2" * 64).startswith(f"is not the base that was merged: fingerprint {'2' * 12}")


@pytest.mark.parametrize("like", [None, "SHA-256"])
def test_the_base_of_a_task_vector_may_have_more_than_it(like):
    own = open_checkpoint({"w": torch.ones(2)})
    more = open_checkpoint({"w": torch.ones(2), "head": torch.ones(1)})
    other = open_checkpoint({"w": torch.zeros(2)})
    made = Provenance(base=fingerprint(own, like), base_tensors=tensor_fingerprints(own, like and {"w": like}))
    assert vector_base_problem(made, own) is None
    assert vector_base_problem(made, more) is None
    assert vector_base_problem(made, other) == "has other weights than those that it was made from: w."
    earlier = Provenance(base=fingerprint(own, like))
    assert vector_base_problem(earlier, own) is None
    assert vector_base_problem(earlier, other).startswith("is not the base")

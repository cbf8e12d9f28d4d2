"""What `KnOTS` takes; what it does is in ``tests/rules/test_subspace.py``."""

import pytest

from lwptv_lightning import MergeRecipe
from lwptv_lightning.modifiers import SUBSPACES, KnOTS


def test_a_name_a_mapping_and_itself_are_the_same():
    given = ("knots", {"name": "knots"}, {"name": "knots", "include": ["*.weight"]}, KnOTS())
    assert {MergeRecipe("ties", subspace=each) for each in given} == {MergeRecipe("ties", subspace="knots")}
    assert MergeRecipe("ties", subspace="knots").to_dict()["subspace"] == {"name": "knots", "include": ["*.weight"]}
    assert SUBSPACES["knots"] is KnOTS


@pytest.mark.parametrize("wrong", [{"name": "knots", "density": 1}, {"name": "knots", "include": "*"}, {"include": []}])
def test_refuses_what_it_does_not_take(wrong):
    with pytest.raises((KeyError, TypeError, ValueError), match=r"density|include|subspace"):
        MergeRecipe("ties", subspace=wrong)

import pytest

from lwptv_lightning import MergeRecipe
from lwptv_lightning.registry import UnknownNameError


@pytest.mark.parametrize("field", ["reweight", "calibrate", "subspace"])
def test_a_recipe_refuses_what_is_no_modifier(field):
    with pytest.raises(UnknownNameError, match="no_such"):
        MergeRecipe(**{field: "no_such"})
    for value in (3, {"alpha": 1}, ["svc"]):
        with pytest.raises(TypeError, match=field):
            MergeRecipe(**{field: value})

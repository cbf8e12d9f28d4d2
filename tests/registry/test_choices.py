import dataclasses

import pytest

from lwptv_lightning import MergeRecipe, layers_from_names
from lwptv_lightning.registry import COUNTS, GRANULARITIES, RANKINGS, UnknownNameError


@pytest.mark.parametrize(
    ("field", "choices"), [("granularity", GRANULARITIES), ("ranking", RANKINGS), ("count", COUNTS)]
)
def test_a_recipe_takes_each_choice_and_no_other(field, choices):
    assert all(getattr(MergeRecipe(**{field: choice}), field) == choice for choice in choices)
    with pytest.raises(UnknownNameError, match=f"unknown {field} '{choices[0]}s'. Did you mean '{choices[0]}'"):
        MergeRecipe(**{field: f"{choices[0]}s"})
    declared = {each.name: each.metadata["range"] for each in dataclasses.fields(MergeRecipe)}
    assert declared[field] == ", ".join(choices)


def test_every_granularity_makes_other_layers():
    names = ["blocks.0.fc.weight", "blocks.0.fc.bias", "blocks.0.out.weight", "blocks.1.fc.weight"]
    counts = [len(layers_from_names(names, granularity)) for granularity in GRANULARITIES]
    assert counts == [2, 3, 4]

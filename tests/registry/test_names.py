import dataclasses

import pytest

from lwptv_lightning import MergeRecipe, layers_from_names
from lwptv_lightning.registry import COUNTS, GRANULARITIES, RANKINGS, LoaderName, UnknownNameError


@pytest.mark.parametrize(("text", "domain", "name"), [("id/a", "id", "a"), ("ood/a/b.c", "ood", "a/b.c")])
def test_a_name_is_taken_apart_and_put_together(text, domain, name):
    assert LoaderName.parse(text) == LoaderName(domain, name)
    assert str(LoaderName(domain, name)) == text


@pytest.mark.parametrize("text", ["svhn", "id", "id/", "/a", "val/a", ""])
def test_names_without_a_domain(text):
    with pytest.raises(ValueError, match=f"loader '{text}' must be named 'id/<name>'"):
        LoaderName.parse(text)


def test_domain_that_is_misspelt():
    with pytest.raises(ValueError, match="Did you mean 'ood'"):
        LoaderName.parse("odd/a")


@pytest.mark.parametrize("text", ["id/avg", "ood/normalized", "id/avg/a"])
def test_names_of_the_averages_are_taken(text):
    assert LoaderName.of_figure(text).is_average
    with pytest.raises(ValueError, match="taken by the averages"):
        LoaderName.parse(text)


@pytest.mark.parametrize("text", ["id/a", "id/average", "loss", "id/a/avg"])
def test_other_figures_are_no_averages(text):
    assert not LoaderName.of_figure(text).is_average


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

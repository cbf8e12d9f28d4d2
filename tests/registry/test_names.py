import dataclasses

import pytest

from lwptv_lightning import MergeRecipe, layers_from_names
from lwptv_lightning.registry import (
    COUNTS,
    GRANULARITIES,
    RANKINGS,
    LoaderName,
    UnknownNameError,
    own_tasks,
    require_groups_apart,
)


@pytest.mark.parametrize(
    ("text", "parts", "keys"),
    [
        ("id/a", ("id", "a"), ("a",)),
        ("ood/a/b.c", ("ood", "b.c", "a"), ("a/b.c", "b.c")),
        ("id/a/b/c", ("id", "b/c", "a"), ("a/b/c", "b/c")),
        ("ood/ood/id", ("ood", "id", "ood"), ("ood/id", "id")),
        ("id//a", ("id", "/a"), ("/a",)),
    ],
)
def test_a_name_is_taken_apart_and_put_together(text, parts, keys):
    parsed = LoaderName.parse(text)
    assert (parsed.domain, parsed.name, parsed.group) == (*parts, None)[:3]
    assert parsed == LoaderName(*parts) == LoaderName(parts[0], keys[0])
    assert str(parsed) == text
    assert parsed.keys == keys


def test_of_two_keys_that_are_known_the_longer_counts():
    name = LoaderName.parse("ood/near/x")
    assert name.key_in({"x", "near/x", "far/x"}) == "near/x"
    assert name.key_in({"x", "far/x"}) == "x"
    assert name.key_in({"near", "far/x", "ood/near/x"}) is None


@pytest.mark.parametrize("text", ["svhn", "id", "id/", "/a", "val/a", "", "id/a/", "ood/near/x/"])
def test_names_without_a_domain(text):
    with pytest.raises(ValueError, match=f"loader '{text}' must be named 'id/<name>'"):
        LoaderName.parse(text)


def test_domain_that_is_misspelt():
    with pytest.raises(ValueError, match="Did you mean 'ood'"):
        LoaderName.parse("odd/a")


@pytest.mark.parametrize(
    ("text", "over", "heading"),
    [
        ("id/avg", "id", "ID avg"),
        ("ood/normalized", "ood", "OOD normalized"),
        ("id/avg/a", "id", "ID avg/a"),
        ("ood/near/avg", "ood/near", "OOD near avg"),
        ("ood/near/avg/top1/0", "ood/near", "OOD near avg/top1/0"),
        ("id/near/normalized", "id/near", "ID near normalized"),
    ],
)
def test_names_of_the_averages_are_taken(text, over, heading):
    assert LoaderName.of_figure(text).over == over
    assert LoaderName.of_figure(text).heading == heading
    assert LoaderName.of_figure(text).is_average
    with pytest.raises(ValueError, match="taken by the averages"):
        LoaderName.parse(text)


@pytest.mark.parametrize("text", ["id/a", "id/average", "loss", "avg", "id/a/average", "id/a/b/avg"])
def test_other_figures_are_no_averages(text):
    assert not LoaderName.of_figure(text).is_average


@pytest.mark.parametrize(
    ("loaders", "culprit"),
    [(["ood/near/x", "ood/near"], "ood/near"), (["id/a", "ood/a/b", "id/a/b/c"], "id/a")],
)
def test_no_loader_is_called_as_a_group_of_others(loaders, culprit):
    with pytest.raises(ValueError, match=f"loader '{culprit}' is named as the group of '{culprit}/"):
        require_groups_apart(loaders)


def test_loaders_that_are_called_as_groups_elsewhere():
    require_groups_apart(["id/near", "ood/near/x", "ood/far/near", "ood/near/x/y", "ood/nea"])


def test_tasks_of_loaders_in_groups_and_of_none():
    loaders = ["id/a", "id/day/a", "id/day/b", "id/night/b", "id/c/d", "id/e", "ood/a", "ood/day/b"]
    found = own_tasks(loaders, {"a": 1, "b": 2, "day/b": 3, "c/d": 4})
    assert found == {"id/a": "a", "id/day/a": "a", "id/day/b": "day/b", "id/night/b": "b", "id/c/d": "c/d"}


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

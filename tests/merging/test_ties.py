"""A tied weight is meant by any of its names."""

import pytest
import torch

from lwptv_lightning import MergeRecipe, TaskVectors, get_rule, layers_from_names
from lwptv_lightning.merging import rule_of
from lwptv_lightning.merging.ties import by_first_names, data_by_first_name, further_names, patterns_of_layers

ONE, TWO = torch.ones(2), torch.full((2,), 2.0)


@pytest.fixture
def vectors():
    base = {"embed.weight": torch.zeros(2), "fc.weight": torch.zeros(2)}
    vectors = TaskVectors.open(base, {"a": dict.fromkeys(base, ONE)})
    return TaskVectors(vectors._base, vectors._experts, vectors.names, tied={"lm_head.weight": "embed.weight"})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"embed.weight": ONE}, ONE),
        ({"lm_head.weight": ONE}, ONE),
        ({"lm_head": ONE}, ONE),
        ({"embed": ONE, "lm_head": ONE}, ONE),
        ({"embed": ONE, "lm_head.weight": TWO}, 3 * ONE),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_data_statistics_come_under_the_first_name(given, expected, vectors):
    joined = data_by_first_name({"a": {**given, "fc": TWO}}, vectors)
    assert joined["a"].keys() == {"embed.weight", "fc"}
    assert torch.equal(joined["a"]["embed.weight"], expected)


def test_data_statistics_without_that_weight_stay(vectors):
    assert data_by_first_name({"a": {"fc": ONE}}, vectors) == {"a": {"fc": ONE}}


@pytest.mark.parametrize("granularity", ["tensor", "module"])
def test_a_pattern_that_matches_no_layer_may_mean_a_further_name(granularity, vectors):
    layers = layers_from_names(vectors.names, granularity)
    further, first = further_names(vectors, layers), layers.names[0]
    assert set(further.values()) == {first}
    found = patterns_of_layers(["lm_head*", "fc*", "*e*", "none"], layers, further)
    assert found == [first] * len(further) + ["fc*", "*e*", "none"]


def test_a_rules_patterns_match_by_any_name():
    tied = {"lm_head.weight": "embed[0].weight"}
    rule = get_rule("tsv_m")(exclude=("lm_*", "fc*"))
    assert by_first_names(rule, tied).exclude == ("lm_*", "embed[[]0].weight", "fc*")
    assert by_first_names(rule, {}) is rule
    assert by_first_names(get_rule("tsv_m")(exclude=("*.weight",)), tied).exclude == ("*.weight",)


def test_so_do_those_of_a_subspace_and_of_the_rule_in_it():
    recipe = MergeRecipe(
        {"name": "adamerging", "coefficients": {"lm_*": [0.1]}}, subspace={"name": "knots", "include": ["lm_*"]}
    )
    found = by_first_names(rule_of(recipe), {"lm_head.weight": "embed.weight"})
    assert found.include == ("lm_*", "embed.weight")
    assert list(found.rule.coefficients) == ["lm_*", "embed.weight"]


def test_the_first_pattern_that_matches_by_any_name_counts():
    rule = get_rule("adamerging")(coefficients={"lm_*": [0.1], "*": [0.2]})
    found = by_first_names(rule, {"lm_head.weight": "embed.weight"}).coefficients
    assert list(found.items()) == [("lm_*", (0.1,)), ("embed.weight", (0.1,)), ("*", (0.2,))]

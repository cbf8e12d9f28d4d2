import pytest

from lwptv_lightning import MergeRecipe
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.rules import RULES
from lwptv_lightning.search import SearchSpace
from lwptv_lightning.search.space import REFERENCE, name_of, reference, unpruned


def test_the_usual_space_fits_the_usual_budget_and_has_twins_of_all_that_prunes():
    recipes = SearchSpace().recipes()
    assert 100 < len(recipes) <= 195
    assert next(iter(recipes)) == REFERENCE == name_of(reference())
    assert {recipe.rule.name for recipe in recipes.values()} >= {"task_arithmetic", "ties", "tsv_m"}
    assert {recipe.ratio for recipe in recipes.values()} == {0, 0.3, 0.5, 0.7}
    assert not any(recipe.rule.needs for recipe in recipes.values())
    for name, recipe in recipes.items():
        assert name == name_of(recipe)
        assert unpruned(recipe) in recipes.values()
    pruned = [recipe.prunes_layers for recipe in recipes.values()]
    assert pruned == sorted(pruned)


def test_a_space_is_the_product_of_what_is_given():
    space = SearchSpace(rules=["ties", "dare"], scores=["l2", "-l2"], ratios=[0.25], scales={"ties": [1, 2]})
    recipes = space.recipes()
    assert recipes["ties x 2, -l2 0.25"] == MergeRecipe("ties", 2.0, score="-l2", ratio=0.25)
    of_dare = [recipe for recipe in recipes.values() if recipe.rule.name == "dare"]
    assert len(of_dare) == 3 * len(space.scales_of(of_dare[0].rule))
    assert len(recipes) == 1 + 3 * 2 + len(of_dare)


def test_hyper_parameters_that_are_listed_are_tried_one_by_one():
    rules = [{"name": "ties", "density": [0.1, 0.2], "reduce": ["mean", "sum"]}, "ties"]
    space = SearchSpace(rules=rules, ratios=0, scales=1)
    assert [(rule.density, rule.reduce) for rule in space.rules] == [
        (0.1, "mean"),
        (0.1, "sum"),
        (0.2, "mean"),
        (0.2, "sum"),
    ]
    assert "ties x 1, density 0.1, reduce sum" in space.recipes()
    assert "ties x 1" in space.recipes()


def test_a_list_that_is_a_value_itself_is_no_choice():
    one = SearchSpace(rules=[{"name": "tsv_m", "exclude": ["a*", "b*"]}], ratios=[0], scales=[1])
    assert [rule.exclude for rule in one.rules] == [("a*", "b*")]
    two = SearchSpace(rules=[{"name": "tsv_m", "exclude": [["a*"], ["b*"]]}], ratios=[0], scales=[1])
    assert [rule.exclude for rule in two.rules] == [("a*",), ("b*",)]


def test_further_fields_are_common_to_all_but_the_reference():
    space = SearchSpace(common={"granularity": "block", "ranking": "all"}, rules="ties", scales=1)
    reference_, *others = space.recipes().values()
    assert reference_ == reference()
    assert {(recipe.granularity, recipe.ranking) for recipe in others} == {("block", "all")}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rules": ["tsvm"]}, "unknown merging rule 'tsvm'. Did you mean 'tsv_m'"),
        ({"rules": [{"name": "ties", "densty": [0.1]}]}, "unknown hyper-parameter of ties 'densty'. Did you mean"),
        ({"rules": [{"name": "tie"}]}, "Did you mean 'ties'"),
        ({"scores": ["mean_ab"]}, "unknown saliency score 'mean_ab'. Did you mean 'mean_abs'"),
        ({"scales": {"tie": [1]}}, "unknown merging rule 'tie'. Did you mean 'ties'"),
        ({"scales": {"dare": [1]}}, "rule of the search among scales 'dare'. Known: iso_c"),
        ({"gates": ["tsvm"]}, "Did you mean 'tsv_m'"),
        ({"common": {"granularty": "block"}}, "Did you mean 'granularity'"),
        ({"common": {"granularity": "blok"}}, "Did you mean 'block'"),
    ],
)
def test_an_unknown_name_has_its_nearest(given, told):
    with pytest.raises(UnknownNameError) as raised:
        SearchSpace(**given)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"ratios": [50]}, "not 50; it is a fraction, not percent"),
        ({"ratios": [1]}, "ratios: 1 prunes every layer"),
        ({"ratios": ["half"]}, "ratios must be a number"),
        ({"scales": ["big"]}, "scales must be a number"),
        ({"scales": {"ties": ["big"]}}, "scales of ties must be a number"),
        ({"scales": []}, "scales is empty"),
        ({"rules": []}, "rules is empty"),
        ({"rules": [{"density": 0.2}]}, "a rule is given by its name"),
        ({"rules": [{"name": "ties", "density": [0.1, 2]}]}, "density must be a number in"),
        ({"gates": ["wudi"]}, "wudi"),
        ({"common": 3}, "common must be"),
    ],
)
def test_what_is_wrong_is_named(given, told):
    with pytest.raises((ValueError, TypeError)) as raised:
        SearchSpace(**given)
    assert told in str(raised.value)


def test_gates_are_learnt_where_they_are_asked_for_or_their_rule_is_tried():
    assert SearchSpace().gates_rules() == ("tsv_m",)
    assert SearchSpace(rules=["ties"]).gates_rules() == ()
    assert SearchSpace(rules=["ties"], gates=True).gates_rules() == ("tsv_m",)
    assert SearchSpace(gates=False).gates_rules() == SearchSpace(gates=[]).gates_rules() == ()
    assert SearchSpace(gates="task_arithmetic").gates_rules() == ("task_arithmetic",)


@pytest.mark.parametrize("name", sorted(RULES))
def test_any_rule_can_be_tried(name):
    recipes = SearchSpace(rules=[name], scores="mean_abs", ratios=[0.5], scales=[0.5]).recipes()
    assert f"{name} x 0.5, mean_abs 0.5" in recipes


def test_modifiers_are_tried_beside_each_rule_after_it_was_tried_without():
    beside = [{"calibrate": ["svc", {"name": "subspace_boosting", "beta": [0.1, 0.5]}]}]
    recipes = SearchSpace(rules=["ties", "dare"], ratios=[0.5], scores="l2", scales=1, modifiers=beside).recipes()
    plain = [name for name, recipe in recipes.items() if not recipe.prunes_layers]
    assert plain[:5] == [REFERENCE, "ties x 1", "dare x 1", "ties x 1, svc", "dare x 1, svc"]
    assert plain[5] == "ties x 1, subspace_boosting, subspace_boosting.beta 0.1"
    assert len(recipes) == 1 + 2 * 4 * 2
    assert all(unpruned(recipe) in recipes.values() for recipe in recipes.values())


def test_what_all_recipes_have_may_be_a_modifier():
    recipes = SearchSpace(rules="ties", scales=1, ratios=0, common={"calibrate": {"name": "svc", "alpha": 1}}).recipes()
    assert list(recipes) == [REFERENCE, "ties x 1, svc, svc.alpha 1"]


def test_a_rule_that_refuses_a_modifier_is_left_out_of_it():
    space = SearchSpace(
        rules=["iso_c", "ties"], scales=1, ratios=0, modifiers=[{"calibrate": {"name": "svc", "alpha": [0.1, 1]}}]
    )
    named = ["iso_c x 1", "ties x 1", "ties x 1, svc, svc.alpha 0.1", "ties x 1, svc, svc.alpha 1"]
    assert list(space.recipes())[1:] == named
    (told,) = space.left_out()
    assert told.startswith("Not tried: iso_c with calibrate=svc. ")
    with pytest.raises(ValueError, match=r"modifiers: no rule of the search takes calibrate=svc\. .*iso_c"):
        SearchSpace(rules="iso_c", modifiers=[{"calibrate": "svc"}])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{"calibrat": "svc"}], "Did you mean 'calibrate'"),
        ([{"calibrate": "scv"}], "Did you mean 'svc'"),
        ([{"calibrate": {"name": "svc", "alhpa": 1}}], "Did you mean 'alpha'"),
        ([{"calibrate": {"name": "svc", "alpha": [0.1, -1]}}], "alpha must be a number in"),
        ([{"calibrate": {"alpha": 1}}], "calibrate must be one of"),
        (["svc"], "modifiers must be a list of mappings"),
        ({"calibrate": 3}, "calibrate must be one of"),
    ],
)
def test_what_is_no_modifier_is_named(given, told):
    with pytest.raises((ValueError, TypeError)) as raised:
        SearchSpace(modifiers=given)
    assert told in str(raised.value)

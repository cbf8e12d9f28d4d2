"""Modifiers where many recipes are compared: each candidate is told apart, stored, tuned and reported as what it is."""

import json

import pytest
from _helpers.swept import small_loaders, small_module, small_samples

from lwptv_lightning import MergeRecipe, merge, tune
from lwptv_lightning.modifiers import modifier_entries
from lwptv_lightning.search import findings_of, sweep
from lwptv_lightning.search.change import change_of
from lwptv_lightning.search.space import name_of

RECIPES = [
    MergeRecipe("ties", scale, **beside, **pruned)
    for beside in ({}, *({each.field: each.name} for each in modifier_entries()))
    for pruned in ({}, {"ratio": 0.5})
    for scale in (0.5, 1.0)
]


def test_a_sweep_and_its_store_tell_candidates_apart_by_what_stands_beside_the_rule(make_trainer, tmp_path):
    module, candidates = small_module(), {name_of(recipe): recipe for recipe in RECIPES}
    assert len(candidates) == len(RECIPES)
    first = sweep(make_trainer(), module, candidates, small_loaders(), store=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) >= len(candidates)
    for name, recipe in candidates.items():
        own = merge(module.vectors, recipe, module.layers("module"))
        weights = {each: own[each] for each in (*module.vectors.names, *module.vectors.averaged)}
        assert first.changes[name] == pytest.approx(change_of(weights, module.vectors), rel=1e-6)
    again = sweep(make_trainer(), module, dict(reversed(candidates.items())), small_loaders(), store=tmp_path)
    assert {name: again.changes[name] for name in first.names} == first.changes


def test_tune_tries_each_rule_with_and_without(make_trainer, tmp_path):
    space = {
        "rules": ["simple_average", "iso_c"],
        "modifiers": [{"calibrate": {"name": "svc", "alpha": [0.1, 1]}}],
        "scores": ["mean_abs"],
        "ratios": [0.5],
        "scales": [1],
        "gates": False,
    }
    module = small_module()
    found = tune(
        make_trainer(), module, small_samples(), small_loaders(), space=space, budget=50, masks=1, store=tmp_path
    )
    assert {
        "simple_average x 1",
        "simple_average x 1, svc, svc.alpha 0.1",
        "simple_average x 1, svc, mean_abs 0.5, svc.alpha 1",
        "iso_c x 1",
    } <= set(found.candidates)
    assert not any("iso_c" in name and "svc" in name for name in found.candidates)
    told = [note for note in found.notes if note.startswith("Not tried: iso_c with calibrate=svc.")]
    assert len(told) == 1  # of both alphas
    assert found.recipes[found.unpruned].calibrate == found.recipe.calibrate
    assert MergeRecipe.from_dict(json.loads(json.dumps(found.recipe.to_dict()))) == found.recipe
    assert findings_of(found, module).recipe == found.recipe

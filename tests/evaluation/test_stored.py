"""What a checkpoint holds besides weights; whole round trips are in ``test_module.py``."""

import pytest
from torch import nn

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors
from lwptv_lightning.evaluation.stored import described, restore_, store


def module_of(model, **options):
    vectors = TaskVectors.open(model, {"a": nn.Linear(2, 3)})
    return MergeModule(model, vectors, MergeRecipe("ties", scale=0.5), **options)


def test_what_is_stored_tells_recipe_heads_and_provenance():
    module = module_of(nn.Linear(2, 3), heads={"b.c": nn.Linear(3, 2)}).merge_()
    checkpoint = {module.CHECKPOINT_HYPER_PARAMS_KEY: {"recipe": None}, "state_dict": module.state_dict()}
    store(module, checkpoint)
    assert checkpoint[module.CHECKPOINT_HYPER_PARAMS_KEY]["recipe"] == module.recipe.to_dict()
    fresh = MergeModule(nn.Linear(2, 3), heads={"b.c": nn.Linear(3, 2)})
    restore_(fresh, checkpoint)
    assert fresh.installed == module.recipe
    assert fresh.provenance() == module.provenance()
    with pytest.raises(ValueError, match=r"the checkpoint has a head for 'b\.c': give heads="):
        restore_(MergeModule(nn.Linear(2, 3)), checkpoint)


def test_a_module_that_holds_no_merge_stores_none():
    module = module_of(nn.Linear(2, 3))
    checkpoint = {"state_dict": module.state_dict()}
    store(module, checkpoint)
    fresh = MergeModule(nn.Linear(2, 3))
    restore_(fresh, checkpoint)
    assert fresh.installed is None


def test_what_has_changed_since_the_merge_is_told_after_a_checkpoint_too():
    module = module_of(nn.Linear(2, 3)).merge_()
    checkpoint = {module.CHECKPOINT_HYPER_PARAMS_KEY: {}, "state_dict": module.state_dict()}
    store(module, checkpoint)
    fresh = MergeModule(nn.Linear(2, 3))
    restore_(fresh, checkpoint)
    fresh.load_state_dict(checkpoint["state_dict"])
    assert described(fresh) == described(module) == module.provenance()
    nn.init.ones_(fresh.model.bias)
    assert described(fresh).changed == ["bias"]

import torch
from _helpers.states import assert_same_bits
from safetensors.torch import load_file

from lwptv_lightning import EvaluationSuite, MergeModule, MergeRecipe
from lwptv_lightning.zoo import ID_SETS, OOD_SETS, base_path, expert_paths, zoo_module, zoo_suite
from lwptv_lightning.zoo.domains import loader_name


def test_the_module_holds_the_zoo_and_the_recipe_of_plain_values():
    module = zoo_module({"rule": "ties", "ratio": 0.5})
    assert isinstance(module, MergeModule)
    assert module.recipe == MergeRecipe("ties", ratio=0.5)
    assert module.vectors.tasks == ID_SETS
    assert module.head_names == ID_SETS + OOD_SETS
    base, expert = load_file(base_path()), load_file(expert_paths()["greek_noise"])
    assert_same_bits({name: module.vectors.base(name) for name in base}, base)
    assert_same_bits({name: module.vectors.expert("greek_noise", name) for name in expert}, expert)


def test_the_suite_has_every_set_once_in_the_size_asked_for():
    suite = zoo_suite(size=4)
    assert isinstance(suite, EvaluationSuite)
    assert list(suite.loaders) == list(map(loader_name, ID_SETS + OOD_SETS))
    assert all(sum(len(labels) for _, labels in loader) == 4 for loader in suite.loaders.values())
    images, labels = next(iter(suite.loaders["id/greek_noise"]))
    assert images.shape[0] == len(labels)
    assert images.dtype == torch.float32


def test_the_suite_has_validation_sets_of_other_images_on_demand():
    suite = zoo_suite(size=4, validation=3)
    assert list(suite.validation) == [f"id/{name}" for name in ID_SETS]
    assert [len(loader.dataset) for loader in suite.validation.values()] == [3] * len(ID_SETS)
    images, reported = (each[f"id/{ID_SETS[0]}"].dataset.images for each in (suite.validation, suite.loaders))
    assert not any(torch.equal(image, other) for image in images for other in reported)
    assert zoo_suite(size=4).validation == {}

import pytest

from lwptv_lightning.cli.checked import (
    require_any,
    require_checkpoint,
    require_data,
    require_known_keys,
    require_model,
    require_recipe,
)
from lwptv_lightning.registry import ConfigurationError

SOUND = {"model": "resnet18", "base": "b.pt", "tasks": {"a": "a.pt"}, "data": {"id": {"a": "images"}}}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.pt", "a.pt"):
        (tmp_path / name).touch()


def test_what_is_sound_passes():
    require_known_keys(SOUND, ["trainer"])
    require_model(SOUND)
    require_model(SOUND | {"heads": {"x": "a", "y": "a.pt", "a": "a"}, "base": "hf-hub:owner/x"})
    require_data(SOUND)


def require_all(values):
    require_known_keys(values, ["trainer"])
    require_model(values)
    require_data(values)


WRONG = {
    "a key at the top": ({"taks": {}}, "taks: unknown key. Did you mean 'tasks'"),
    "a key of data's": ({"batch_size": 3}, "batch_size: unknown key. Did you mean 'data.batch_size'"),
    "no base": ({"base": None}, "base: it is required"),
    "base": ({"base": "c.pt"}, "base: there is no checkpoint at 'c.pt'. Did you mean '[ab].pt'"),
    "a number": ({"base": 3}, "base: expected a path, not 3"),
    "a folder too much": ({"base": "x/y/b.pt"}, "base: there is no checkpoint at 'x/y/b.pt'. '.' has no 'x'"),
    "tasks": ({"tasks": ["a.pt"]}, "tasks: expected a mapping"),
    "no task": ({"tasks": {}}, "tasks: there is none"),
    "a task": ({"tasks": {"a": 3}}, "tasks.a: expected a path, not 3"),
    "model": ({"model": {"name": "x"}}, "model: expected a name of timm"),
    "a head": (
        {"heads": {"x": "aa"}},
        "heads.x: 'aa' is neither another set with a head nor a checkpoint. Did you mean",
    ),
    "a file as a head": (
        {"heads": {"x": "zz/none.pth"}},
        r"heads.x: 'zz/none.pth' is neither another set with a head nor a checkpoint. '.*' has no 'zz'\.$",
    ),
    "an accuracy": ({"expert_accuracy": {"a": -1}}, "expert_accuracy.a: expected a number above 0, not -1"),
    "a number as a head": ({"heads": {"x": 3}}, "heads.x: expected another set's name"),
    "exclude": ({"exclude": "fc.*"}, "exclude: expected a list of globs"),
    "accuracy": ({"expert_accuracy": {"a": "high"}}, "expert_accuracy.a: expected a number"),
    "a flag": ({"resize_position_embedding": "y"}, "resize_position_embedding: expected true or false"),
    "a field": ({"recipe": {"rule": "ties", "scal": 1}}, "recipe.scal: unknown key. Did you mean 'recipe.scale'"),
    "a rule's own": (
        {"recipe": {"rule": "ties", "density": 1}},
        "recipe.density: .*of the rule 'ties': recipe.rule.dens",
    ),
    "a range": ({"recipe": {"ratio": 50}}, r"recipe.ratio: must lie in \[0, 1\], not 50"),
    "a rule": ({"recipe": "tise"}, "recipe: unknown merging rule 'tise'. Did you mean 'ties'"),
    "a recipe's file": ({"recipe": "none.json"}, "recipe: 'none.json'"),
    "no data": ({"data": None}, "data: it is required"),
    "a key of data": ({"data": {"id": {"a": "x"}, "odo": {}}}, "data.odo: unknown key. Did you mean 'data.ood'"),
    "no set": ({"data": {"batch_size": 3}}, "data.id: there is no set"),
    "a set": ({"data": {"id": "images"}}, "data.id: expected a mapping of names"),
    "a batch": (
        {"data": {"id": {"a": "x"}, "batch_size": 0}},
        "data.batch_size: expected a whole number of at least 1",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_key_and_the_nearest(case):
    change, message = WRONG[case]
    values = SOUND | change
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        require_all(values)


def test_where_nothing_is_said_all_is_asked_for():
    with pytest.raises(ConfigurationError, match="^the following arguments are required: --config FILE"):
        require_any({})


def test_any_recipe_may_be_checked_by_its_key():
    require_recipe("recipes.a", {"rule": {"name": "ties", "density": 0.1}, "scale": 2})
    with pytest.raises(ConfigurationError, match="^recipes.a: expected a rule's name"):
        require_recipe("recipes.a", 3)


def test_a_name_too_long_for_a_file_is_told():
    with pytest.raises(ConfigurationError, match="^base: "):
        require_checkpoint("base", "x" * 5000)

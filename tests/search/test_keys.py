"""Whatever decides what a candidate gets right is among its keys."""

import pytest
import timm
import torch
from _helpers.swept import small_module
from torch import nn

from lwptv_lightning import LayerMask, MergeModule, MergeRecipe, TaskVectors, trace_layers
from lwptv_lightning.evaluation import remembering
from lwptv_lightning.search import Gates
from lwptv_lightning.search.keys import Keys

LOADERS = ("id/a", "ood/far")


def key_of(make_trainer, module=None, recipe=None, options=None, samples="s", loaders=LOADERS, again=False, **of):
    module = small_module() if module is None else module
    keys = Keys.of(make_trainer(**of), module, loaders, {**module.options, **(options or {})})
    return str(keys.of_recipe(MergeRecipe("ties") if recipe is None else recipe, samples, recalibrated=again))


def altered(change):
    module = small_module()
    with torch.no_grad():
        change(module)
    return module


def with_vectors(change, **options):
    module = small_module()
    vectors = module.vectors
    base = {name: vectors.base(name).clone() for name in vectors.headers}
    tasks = {task: {name: vectors.expert(task, name).clone() for name in vectors.headers} for task in "ab"}
    tasks = change(base, tasks) or tasks
    return MergeModule(module.model, TaskVectors.open(base, tasks, **options), heads=dict(module.heads))


def test_the_same_has_the_same_key(make_trainer):
    assert key_of(make_trainer) == key_of(make_trainer) == key_of(make_trainer, options={"max_memory": "1GB"})
    assert key_of(make_trainer, samples="other") == key_of(make_trainer)  # it looks at none


def test_whatever_decides_is_told(make_trainer):
    layers = trace_layers(small_module().model)
    kept = LayerMask(("a", "b"), layers.names, torch.ones(2, len(layers), dtype=torch.bool))
    module = small_module()
    heads, activation = {"heads": dict(module.heads)}, small_module()
    activation.model[2] = nn.GELU()
    keys = {
        "own": key_of(make_trainer),
        "recipe": key_of(make_trainer, recipe=MergeRecipe("ties", 0.5)),
        "hyper-parameter": key_of(make_trainer, recipe=MergeRecipe({"name": "ties", "density": 0.3})),
        "ratio": key_of(make_trainer, recipe=MergeRecipe("ties", ratio=0.2)),
        "head": key_of(make_trainer, altered(lambda each: each.heads["a"].bias.add_(1))),
        "other head": key_of(make_trainer, altered(lambda each: each.heads["far"].weight[0, 0].add_(1))),
        "base": key_of(make_trainer, with_vectors(lambda base, tasks: base["0.weight"][0, 0].add_(1) and None)),
        "task": key_of(make_trainer, with_vectors(lambda base, tasks: tasks["b"]["3.bias"][0].add_(1) and None)),
        "order": key_of(make_trainer, with_vectors(lambda base, tasks: dict(reversed(tasks.items())))),
        "excluded": key_of(make_trainer, with_vectors(lambda base, tasks: None, exclude=("3.*",))),
        "activation": key_of(make_trainer, activation),
        "loaders": key_of(make_trainer, loaders=("id/a",)),
        "mask": key_of(make_trainer, options={"mask": kept}),
        "precision": key_of(make_trainer, precision="bf16-true"),
        "recalibrated": key_of(make_trainer, again=True),
        "recalibrated on others": key_of(make_trainer, again=True, samples="other"),
        "data": key_of(make_trainer, recipe=MergeRecipe("fisher")),
        "other data": key_of(make_trainer, recipe=MergeRecipe("fisher"), samples="other"),
        "batch keys": key_of(make_trainer, MergeModule(module.model, module.vectors, batch_keys=(0, 1), **heads)),
    }
    assert [name for name in keys if list(keys.values()).count(keys[name]) > 1] == []


def test_other_heads_of_other_loaders_do_not_count(make_trainer):
    assert key_of(make_trainer, altered(lambda each: each.heads["b"].bias.add_(1))) == key_of(make_trainer)


def test_weights_and_gates_have_keys_of_their_own(make_trainer):
    module = small_module()
    keys = Keys.of(make_trainer(), module, LOADERS, {})
    state = {name: value.clone() for name, value in module.model.state_dict().items()}
    own = keys.of_weights(state)
    state["0.bias"][0] += 1
    assert keys.of_weights(state) != own == keys.of_weights(dict(module.model.state_dict()))
    gates = keys.of_gates(Gates(), module, ["id/a"], "s")
    assert gates == keys.of_gates(Gates(scale=0.3), module, ["id/a"], "s")
    others = [Gates(seed=1), Gates(steps=2), Gates(rule="task_arithmetic"), Gates(lr=0.1)]
    assert all(keys.of_gates(each, module, ["id/a"], "s") != gates for each in others)
    assert keys.of_gates(Gates(), module, ["id/a"], "other") != gates


def test_what_was_collected_and_given_is_told_for_rules_that_need_it(make_trainer):
    vectors = small_module().vectors
    data = {task: {name: torch.ones_like(vectors.base(name)) for name in vectors.names} for task in "ab"}
    given = [
        key_of(make_trainer, recipe=MergeRecipe("fisher"), options={name: data}) for name in ("data", "statistics")
    ]
    assert given[0] == given[1] != key_of(make_trainer, recipe=MergeRecipe("fisher"))
    assert key_of(make_trainer, options={"data": data}) == key_of(make_trainer)
    data["a"]["0.weight"] = data["a"]["0.weight"] * 2
    assert key_of(make_trainer, recipe=MergeRecipe("fisher"), options={"data": data}) != given[0]


@pytest.mark.parametrize("buffer", ["persistent", "not persistent"])
def test_tensors_that_no_candidate_replaces_are_told(buffer, make_trainer):
    def with_buffer(value):
        module = small_module()
        module.model.register_buffer("scale", torch.tensor(value), persistent=buffer == "persistent")
        return module

    assert key_of(make_trainer, with_buffer(1.0)) == key_of(make_trainer, with_buffer(1.0))
    assert key_of(make_trainer, with_buffer(1.0)) != key_of(make_trainer, with_buffer(2.0))


def test_a_classifier_in_whose_place_heads_act_does_not_count(make_trainer):
    """It has no weights of a checkpoint, and others whenever the model is made."""

    def made(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = timm.create_model("test_resnet", num_classes=3)
        state = {name: torch.full_like(value, 0.5) for name, value in model.state_dict().items()}
        base = {name: value for name, value in state.items() if not name.startswith("fc.")}
        tasks = {"a": {name: value.clone() for name, value in state.items()}}
        tasks["a"]["conv1.0.weight"] += 1
        return MergeModule(model, TaskVectors.open(base, tasks, model=model))

    keys = [
        Keys.of(make_trainer(), made(seed), ["id/a"], {}).of_recipe(MergeRecipe(), None, recalibrated=False)
        for seed in (0, 1)
    ]
    assert not torch.equal(made(0).model.fc.weight, made(1).model.fc.weight)
    assert keys[0] == keys[1]


class Shifted(MergeModule):
    def __init__(self, *given, shift=0.0, **options):
        super().__init__(*given, **options)
        self.shift = shift


def test_a_setting_of_a_module_of_ones_own_is_told_and_what_a_merge_leaves_is_not(make_trainer):
    def shifted(shift):
        plain = small_module()
        return Shifted(plain.model, plain.vectors, heads=dict(plain.heads), shift=shift)

    assert key_of(make_trainer, shifted(0.0)) == key_of(make_trainer, shifted(0.0))
    assert key_of(make_trainer, shifted(0.0)) != key_of(make_trainer, shifted(1.5))
    module = shifted(0.0)
    module.merge_()
    module.treatment = "treated"
    with remembering(module):  # as in a sweep, after which another one finds what it measured
        assert key_of(make_trainer, module) == key_of(make_trainer, shifted(0.0))
    assert key_of(make_trainer, module) == key_of(make_trainer, shifted(0.0))

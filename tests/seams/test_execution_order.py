"""Layers stand in execution order or, without a model, in the natural order of names: never in that of a file."""

import random

import pytest
import torch
from _helpers.every_rule import made_up_fisher, made_up_gram
from _helpers.states import as_bytes, assert_same_bits, open_vectors, plus, random_state
from safetensors.torch import save_file
from torch import nn

from lwptv_lightning import (
    LayerMask,
    LiNeS,
    MergeModule,
    MergeRecipe,
    TaskVectors,
    collect_statistics,
    layers_from_names,
    merge,
    plan_pruning,
    score_layers,
    trace_layers,
)
from lwptv_lightning.inspection import check
from lwptv_lightning.rules import RULES

SHAPES = {"stem.weight": (4, 3)}
for block in range(12):
    SHAPES |= {f"blocks.{block}.norm.bias": (4,), f"blocks.{block}.fc.weight": (4, 4)}
SHAPES |= {"head.weight": (2, 4), "gain": ()}
BASE = random_state(0, shapes=SHAPES)
TASKS = {"a": plus(BASE, random_state(1, 0.1, SHAPES)), "b": plus(BASE, random_state(2, 0.1, SHAPES))}
SHUFFLED = random.Random(0).sample(list(SHAPES), len(SHAPES))
ORDERS = {"module": list(SHAPES), "alphabet": sorted(SHAPES), "shuffled": SHUFFLED}


def listed(state, order):
    return {name: state[name] for name in ORDERS[order]}


def vectors_in(order, tasks=TASKS):
    # The experts list theirs in yet another order.
    return open_vectors(listed(BASE, order), {task: listed(state, "shuffled") for task, state in tasks.items()})


def data_for(rule):
    makers = {"fisher": made_up_fisher, "gram": made_up_gram}
    if not RULES[rule].needs:
        return None
    made = {task: makers[RULES[rule].needs](vectors_in("module"), seed) for seed, task in enumerate(TASKS)}
    return {task: dict(random.Random(1).sample(list(found.items()), len(found))) for task, found in made.items()}


RECIPES = {
    "plain": {},
    "half the layers": {"ratio": 0.5, "score": "conflict"},
    "blocks over all tasks": {"ratio": 0.3, "score": "random", "granularity": "block", "ranking": "all"},
    "parameters": {"ratio": 0.4, "score": "-conflict", "count": "parameters"},
    "elements": {"elements": {"ratio": 0.5}},
    "LiNeS": {"layer_scaling": LiNeS()},
    "LiNeS by hand": {"layer_scaling": LiNeS(alpha=0.2, blocks=r"blocks\.(\d+)\."), "ratio": 0.3},
}


CASES = [(rule, recipe) for rule in sorted(RULES) for recipe in ("half the layers", "LiNeS")]
CASES += [("ties", recipe) for recipe in RECIPES if ("ties", recipe) not in CASES]


@pytest.mark.parametrize(("rule", "recipe"), CASES)
def test_the_order_of_a_file_changes_no_bit(rule, recipe):
    made = MergeRecipe(rule, **RECIPES[recipe])
    found = [merge(vectors_in(order), made, data=data_for(rule)) for order in ("module", "alphabet")]
    assert_same_bits(found[1], found[0])


def test_a_task_of_its_own_has_the_same_bits_too():
    expected = merge(vectors_in("module"), MergeRecipe("emr", task="a"))
    assert_same_bits(merge(vectors_in("alphabet"), MergeRecipe("emr", task="a")), expected)


def test_files_give_the_bits_of_state_dicts(tmp_path):
    for name, state in {"base": BASE, **TASKS}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    files = TaskVectors.open(tmp_path / "base.safetensors", {task: tmp_path / f"{task}.safetensors" for task in TASKS})
    assert list(files.names) != list(SHAPES)
    recipe = MergeRecipe("ties", ratio=0.5, score="random", layer_scaling=LiNeS())
    assert_same_bits(merge(files, recipe), merge(vectors_in("module"), recipe))


@pytest.mark.parametrize("order", ORDERS)
def test_lines_numbers_blocks_by_their_names(order):
    recipe = MergeRecipe("task_arithmetic", scale=1.0, layer_scaling=LiNeS(alpha=0.0, beta=1.0))
    merged, whole = (
        merge(vectors_in(order), recipe),
        merge(vectors_in(order), MergeRecipe("task_arithmetic", scale=1.0)),
    )
    for block in range(12):
        name = f"blocks.{block}.fc.weight"
        torch.testing.assert_close(merged[name] - BASE[name], block / 11 * (whole[name] - BASE[name]))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ranking", ["task", "all"])
def test_of_equal_scores_the_first_block_by_number_goes_first(order, ranking):
    moved = {name: tensor + 0.5 for name, tensor in BASE.items()}
    vectors = vectors_in(order, {"a": moved, "b": moved})
    recipe = MergeRecipe(ratio=4 / 15, granularity="block", score="conflict", ranking=ranking)
    plan = plan_pruning(vectors, recipe)
    assert plan.layers.names == (*(f"blocks.{i}" for i in range(12)), "gain", "head", "stem")
    for _, row in plan.mask:
        assert [layer for layer, kept in row.items() if not kept] == [f"blocks.{i}" for i in range(4)]


def random_scores(names, tasks=("a", "b"), seed=0):
    vectors = vectors_in("module").select(tasks)
    statistics = collect_statistics(vectors, layers_from_names(names))
    return dict(score_layers(statistics, "random", seed=seed))


def test_random_scores_belong_to_names():
    found = random_scores(ORDERS["module"])
    assert random_scores(ORDERS["shuffled"]) == found
    assert random_scores(ORDERS["module"], ("b", "a")) == found
    assert random_scores(ORDERS["module"], ("b",)) == {"b": found["b"]}
    assert random_scores(ORDERS["module"], seed=1) != found
    assert found["a"] != found["b"]


def test_random_scores_stay_when_a_layer_comes_or_goes():
    smaller = {name: tensor for name, tensor in BASE.items() if not name.startswith("blocks.3.")}
    tasks = {task: {name: state[name] for name in smaller} for task, state in TASKS.items()}
    vectors = TaskVectors.open(smaller, tasks)
    scores = dict(score_layers(collect_statistics(vectors, layers_from_names(vectors.names)), "random"))
    whole = random_scores(ORDERS["module"])
    assert scores == {task: {name: row[name] for name in scores[task]} for task, row in whole.items()}


def test_random_scores_are_uniform():
    base = {f"l{i}": torch.zeros(1) for i in range(2000)}
    vectors = TaskVectors.open(base, {"a": {name: tensor + 1 for name, tensor in base.items()}})
    values = score_layers(collect_statistics(vectors, layers_from_names(base)), "random").values[0]
    assert len(values.unique()) == 2000
    counts = torch.histc(values.float(), 10, 0, 1)
    assert counts.min() > 150
    assert counts.max() < 250


@pytest.mark.parametrize("rule", ["dare", "dare_ties", "della"])
def test_draws_stay_when_a_tensor_comes_or_goes(rule):
    # A tensor at the front that no task changed draws nothing away from the others; densities of 1 trim nothing.
    options = {"name": rule, "seed": 3} | ({"trim_density": 1.0} if rule == "dare_ties" else {})
    more = {"a.first": torch.ones(3)}
    longer = TaskVectors.open(more | BASE, {task: more | state for task, state in TASKS.items()})
    merged, expected = (merge(vectors, MergeRecipe(options)) for vectors in (longer, vectors_in("module")))
    assert {name: as_bytes(merged[name]) for name in BASE} == {name: as_bytes(expected[name]) for name in BASE}


def test_masks_scores_and_statistics_may_list_layers_in_the_order_of_a_file():
    vectors = vectors_in("module")
    in_file_order = layers_from_names(ORDERS["shuffled"])
    recipe = MergeRecipe("ties", ratio=0.5, score="conflict")
    expected = merge(vectors, recipe)
    plan = plan_pruning(vectors, recipe)
    columns = [plan.layers.names.index(name) for name in in_file_order.names]
    mask = LayerMask(vectors.tasks, in_file_order.names, plan.mask.kept[:, columns])
    statistics = collect_statistics(vectors, in_file_order)
    assert_same_bits(merge(vectors, recipe, mask=mask), expected)
    assert_same_bits(merge(vectors, recipe, statistics=statistics), expected)
    assert_same_bits(merge(vectors, recipe, scores=score_layers(statistics, "conflict")), expected)
    others = layers_from_names([*ORDERS["shuffled"][:-1], "other"])
    with pytest.raises(ValueError, match="other layers"):
        merge(vectors, recipe, mask=LayerMask(vectors.tasks, others.names, mask.kept))


class Upwards(nn.Module):
    """Runs its blocks from the last number to the first."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(3))

    def forward(self, inputs):
        for block in reversed(self.blocks):
            inputs = block(inputs)
        return inputs


def test_lines_in_a_module_follows_the_execution():
    model = Upwards()
    base = model.state_dict()
    vectors = TaskVectors.open(base, {"a": {name: tensor + 1 for name, tensor in base.items()}})
    recipe = MergeRecipe(scale=1.0, layer_scaling=LiNeS(alpha=0.0, beta=1.0))
    module = MergeModule(Upwards(), vectors, recipe).merge_()
    for block, factor in enumerate([1.0, 0.5, 0.0]):
        moved = module.model.blocks[block][0].bias - vectors.base(f"blocks.{block}.0.bias")
        torch.testing.assert_close(moved.detach(), torch.full((3,), factor))
    assert_same_bits(dict(module.model.state_dict()), merge(vectors, recipe, trace_layers(Upwards())))


def test_check_finds_the_same_figures():
    found = [check(listed(BASE, order), {task: listed(s, "shuffled") for task, s in TASKS.items()}) for order in ORDERS]
    assert found[0] == found[1] == found[2]

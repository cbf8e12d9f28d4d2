"""What a plan holds before its first tensor is made, and that it is poured out in pieces that fit together."""

import pytest
import torch
from _helpers.models import make_model, states_of, vectors_of_model
from _helpers.states import assert_same_bits, watched

from lwptv_lightning import LayerMask, LiNeS, MergeRecipe, TaskVectors
from lwptv_lightning.engine import Execution, Ranks
from lwptv_lightning.layers import layers_from_names, trace_layers
from lwptv_lightning.merging import Merge
from lwptv_lightning.registry import UnknownNameError


class Alone(Ranks):
    """Stands for one of several processes, where no other is asked."""

    def exchange(self, value):
        return [value]


def mask_of(vectors, layers, dropped):
    kept = [[(task, layer) not in dropped for layer in layers.names] for task in vectors.tasks]
    return LayerMask(vectors.tasks, layers.names, torch.tensor(kept))


def test_a_recipe_that_prunes_nothing_has_neither_mask_nor_scores(vectors):
    plan = Merge(vectors, MergeRecipe()).plan()
    assert plan.pruning is plan.mask is None
    assert tuple(plan.jobs) == vectors.names
    assert {job.scale for job in plan.jobs.values()} == {MergeRecipe().effective_scale}


def test_a_given_mask_is_the_plans_and_needs_no_scores(vectors):
    layers = layers_from_names(vectors.names)
    mask = mask_of(vectors, layers, {("a", "fc"), ("b", "stem")})
    plan = Merge(vectors, MergeRecipe(ratio=0.5), mask=mask).plan()
    assert plan.pruning is None
    assert plan.mask is mask
    assert plan.jobs["fc.weight"].kept.tolist() == [False, True, True]
    assert plan.jobs["stem.bias"].kept.tolist() == [True, False, True]
    assert plan.jobs["gain"].kept.tolist() == [True, True, True]


def test_jobs_follow_the_layers_and_tensors_without_one_come_last(base_state, task_states):
    steps = {"steps": torch.tensor(3)}
    vectors = TaskVectors.open(steps | base_state, {task: state | steps for task, state in task_states.items()})
    layers = layers_from_names(list(reversed(vectors.names)))
    plan = Merge(vectors, MergeRecipe(), layers).plan()
    assert tuple(plan.jobs) == layers.tensors == tuple(reversed(vectors.names))
    assert list(plan.owner) == [*layers.tensors, "steps"]
    assert [name for name, _ in plan.tensors()] == [*layers.tensors, "steps"]


def test_scales_are_the_recipes_times_the_layers(vectors):
    scaling = {"stem": 0.5, "gain": 2.0}
    plan = Merge(vectors, MergeRecipe(scale=3.0, layer_scaling=scaling)).plan()
    assert {name: job.scale for name, job in plan.jobs.items()} == {
        "stem.weight": 1.5,
        "stem.bias": 1.5,
        "fc.weight": 3.0,
        "head.weight": 3.0,
        "gain": 6.0,
    }


def test_lines_scales_each_block_by_its_depth():
    model = make_model("ViT")
    vectors = vectors_of_model(model)
    plan = Merge(vectors, MergeRecipe(scale=2.0, layer_scaling=LiNeS(alpha=0.25, beta=0.5)), trace_layers(model)).plan()
    scales = {name.partition(".norm")[0]: job.scale for name, job in plan.jobs.items() if ".norm1.weight" in name}
    assert scales == {"blocks.0": 2 * 0.25, "blocks.1": 2 * (0.25 + 0.5)}
    assert plan.jobs["head.weight"].scale == 2 * 0.25


def test_means_of_running_statistics_take_no_scale():
    vectors = vectors_of_model(make_model("ResNet"))
    jobs = Merge(vectors, MergeRecipe("ties", scale=0.3)).plan().jobs
    averaged = {name for name, job in jobs.items() if job.rule.name == "running_statistics"}
    assert averaged == set(vectors.averaged) == {name for name in vectors.headers if "running" in name}
    assert {jobs[name].scale for name in averaged} == {1.0}
    assert {job.scale for name, job in jobs.items() if name not in averaged} == {0.3}
    assert {name for name in averaged if jobs[name].least == 0} == {n for n in averaged if n.endswith("running_var")}


@pytest.mark.parametrize("block_bytes", [None, 4 * 3 * 4])
@pytest.mark.parametrize("rule", ["ties", "iso_c", "magnitude"])
def test_pieces_cover_each_tensor_once_and_in_order(rule, block_bytes, vectors):
    plan = Merge(vectors, MergeRecipe(rule)).plan(Execution(block_bytes=block_bytes))
    found = {}
    for name, elements, values in plan.pieces():
        assert elements.start == sum(len(piece) for piece in found.get(name, []))
        assert elements.stop - elements.start == len(values)
        found.setdefault(name, []).append(values.clone())
    joined = {name: torch.cat(pieces).reshape(vectors.headers[name].shape) for name, pieces in found.items()}
    assert_same_bits(joined, dict(plan.tensors()))
    in_blocks = rule != "iso_c" and block_bytes is not None
    assert (len(found["fc.weight"]) > 1) == in_blocks


def test_a_plan_can_be_poured_out_twice(vectors):
    plan = Merge(vectors, MergeRecipe("dare", ratio=0.5)).plan()
    assert_same_bits(dict(plan.tensors()), dict(plan.tensors()))


def test_each_process_makes_its_own_tensors_alone(vectors):
    names = [
        [name for name, _, _ in Merge(vectors, MergeRecipe()).plan(Execution(ranks=Alone(rank, 2))).pieces()]
        for rank in range(2)
    ]
    assert all(names)
    assert sorted(names[0] + names[1]) == sorted(vectors.names)


def test_tensors_of_a_layer_whose_elements_are_ranked_together_have_one_owner():
    model = make_model("ViT")
    vectors, layers = vectors_of_model(model), trace_layers(model, "block")
    recipe = MergeRecipe("simple_average", elements={"ratio": 0.5}, granularity="block")
    plan = Merge(vectors, recipe, layers).plan(Execution(ranks=Alone(0, 3)))
    assert set(plan.owner.values()) == {0, 1, 2}
    for layer in layers:
        assert len({plan.owner[name] for name in layer.tensors}) == 1


def test_planning_reads_no_tensor_where_nothing_must_be_known():
    base, tasks = states_of(make_model("ViT"))
    opened = {name: watched(state) for name, state in {"base": base, **tasks}.items()}
    experts = {task: opened[task][0] for task in tasks}
    vectors = TaskVectors.open(opened["base"][0], experts)
    for _, reader in opened.values():
        reader.reads.clear()
    plan = Merge(vectors, MergeRecipe("simple_average", scale=0.5)).plan()
    assert not any(reader.reads for _, reader in opened.values())
    dict(plan.tensors())
    assert all(reader.reads for _, reader in opened.values())


# Plans that differ in their coefficients

COEFFICIENTS = {
    "negative scale": {"scale": -1.7},
    "by layer": {"layer_scaling": {"blocks.0.fc1": 0.5, "head": 2.0}},
    "LiNeS": {"scale": 0.7, "layer_scaling": LiNeS(alpha=0.25)},
    "LiNeS' own alpha": {"layer_scaling": LiNeS(beta=0.3)},
}
UNSCALED = [
    MergeRecipe("ties"),
    MergeRecipe("dare_ties", ratio=0.5),
    MergeRecipe("breadcrumbs", elements={"ratio": 0.5}),
    MergeRecipe("tsv_m", ratio=0.5, dtype="float64"),
    MergeRecipe("magnitude", ratio=0.5, prune_on="parts"),
    MergeRecipe("fisher", ratio=0.5, prune_on="parts"),
    MergeRecipe("ties", ratio=0.5, calibrate="svc"),
    MergeRecipe("magnitude", ratio=0.5, prune_on="parts", calibrate={"name": "subspace_boosting", "scale": 0.5}),
]


@pytest.fixture(scope="module")
def vit_case():
    model = make_model("ViT")
    return vectors_of_model(model), trace_layers(model)


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("unscaled", UNSCALED, ids=lambda recipe: recipe.rule.name)
def test_a_rescaled_plan_makes_what_its_recipe_makes_alone(unscaled, coefficients, vit_case):
    vectors, layers = vit_case
    recipe = unscaled.replace(**COEFFICIENTS[coefficients])
    data = {task: {name: vectors.base(name).square() for name in vectors.names} for task in vectors.tasks}
    alone = dict(Merge(vectors, recipe, layers, data=data).plan().tensors())
    plan = Merge(vectors, unscaled, layers, data=data).plan(Execution(block_bytes=1 << 10))
    for each in (plan, plan.holding()):
        again = each.rescaled(recipe)
        assert again.recipe == recipe
        assert_same_bits(dict(again.tensors()), alone)


def test_layers_may_come_with_the_coefficients_that_need_them(vit_case):
    vectors, layers = vit_case
    recipe = MergeRecipe("ties", layer_scaling=LiNeS())
    plan = Merge(vectors, MergeRecipe("ties")).plan().holding()
    again = plan.rescaled(recipe, layers)
    assert again.layers is layers
    assert_same_bits(dict(again.tensors()), dict(Merge(vectors, recipe, layers).plan().tensors()))


def test_some_tensors_are_rescaled_as_in_the_whole_merge(vit_case):
    vectors, layers = vit_case
    recipe, name = MergeRecipe("ties", layer_scaling=LiNeS()), "blocks.1.fc1.weight"
    alone = dict(Merge(vectors, recipe, layers).plan().tensors())
    plan = Merge(vectors, MergeRecipe("ties"), layers).plan()
    for some in (plan.only([name]).holding(), plan.holding().only([name])):
        assert_same_bits(dict(some.rescaled(recipe).tensors()), {name: alone[name]})


def test_a_held_plan_reads_no_expert_and_surveys_no_model_again(vit_case, monkeypatch):
    vectors, layers = vit_case
    plan = Merge(vectors, MergeRecipe("ties", ratio=0.5), layers).plan().holding()
    expected = dict(Merge(vectors, MergeRecipe("ties", 0.4, ratio=0.5), layers).plan().tensors())
    monkeypatch.setattr(TaskVectors, "open_stack", lambda *given: pytest.fail("task vectors were read"))
    assert_same_bits(dict(plan.rescaled(MergeRecipe("ties", 0.4, ratio=0.5)).tensors()), expected)


def test_another_task_has_the_same_survey_and_nothing_held(vit_case):
    vectors, _ = vit_case
    plan = Merge(vectors, MergeRecipe("emr")).plan().holding()
    for task in vectors.tasks:
        again = plan.rescaled(MergeRecipe("emr", 0.5, task=task))
        assert again.held is None
        assert {id(job.survey) for name, job in again.jobs.items()} == {id(plan.jobs["head.weight"].survey)}
        assert_same_bits(dict(again.tensors()), dict(Merge(vectors, again.recipe).plan().tensors()))
    with pytest.raises(UnknownNameError, match="unknown task 'c'"):
        plan.rescaled(MergeRecipe("emr", task="c"))


def test_what_calibrates_may_change_and_its_scale_is_a_coefficient(vit_case):
    vectors, layers = vit_case
    plan = Merge(vectors, MergeRecipe("ties"), layers).plan().holding()
    seen = []
    for calibrate, scale in (("svc", 0.3), ({"name": "svc", "scale": 0.5}, 0.3), ("svc", 1.0), (None, 1.0)):
        recipe = MergeRecipe("ties", scale, calibrate=calibrate)
        plan = plan.rescaled(recipe)
        seen.append(plan.held is not None)
        plan = plan.holding()
        assert_same_bits(dict(plan.tensors()), dict(Merge(vectors, recipe, layers).plan().tensors()))
    assert seen == [False, True, False, False]


def test_what_changes_more_than_coefficients_is_no_rescaling(vectors):
    plan = Merge(vectors, MergeRecipe("ties", ratio=0.5)).plan()
    others = [{"rule": "dare"}, {"rule": {"name": "ties", "density": 0.5}}, {"ratio": 0.25}, {"dtype": "float64"}]
    for change in others:
        with pytest.raises(ValueError, match="differs from the plan's in scale, layer_scaling, task or calibrate"):
            plan.rescaled(plan.recipe.replace(**change))
    with pytest.raises(ValueError, match="scale: 1e\\+39 for 'fc.weight' is beyond"):
        plan.rescaled(plan.recipe.replace(scale=1e39))


def test_means_and_tied_weights_are_held_and_not_rescaled():
    for kind in ("ResNet", "tied weights"):
        vectors = vectors_of_model(make_model(kind))
        plan = Merge(vectors, MergeRecipe("ties")).plan().holding()
        assert set(plan.held) == {*vectors.names, *vectors.averaged}
        expected = Merge(vectors, MergeRecipe("ties", 0.3)).plan()
        assert_same_bits(dict(plan.rescaled(MergeRecipe("ties", 0.3)).tensors()), dict(expected.tensors()))


def test_no_more_is_held_than_the_limit_of_memory_leaves_room_for():
    base = {"w": torch.zeros(1024, 1024)}
    vectors = TaskVectors.open(base, {"a": {"w": torch.ones(1024, 1024)}})
    plans = {
        limit: Merge(vectors, MergeRecipe("task_arithmetic")).plan(Execution(max_memory=limit, block_bytes=1 << 17))
        for limit in ("5MB", "7MB")  # blocks take 2 MB, the merged task vector 4
    }
    assert {limit: plan.holding().held is not None for limit, plan in plans.items()} == {"5MB": False, "7MB": True}
    for plan in plans.values():
        tensors = dict(plan.holding().rescaled(MergeRecipe("task_arithmetic", 0.5)).tensors())
        assert torch.equal(tensors["w"], torch.full((1024, 1024), 0.5))

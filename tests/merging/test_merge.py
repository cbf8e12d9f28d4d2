import dataclasses
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from lwptv_lightning import (
    ElementPruning,
    LayerMask,
    MergeRecipe,
    TaskVectors,
    collect_statistics,
    layers_from_names,
    merge,
    plan_pruning,
)
from lwptv_lightning.engine import Execution
from lwptv_lightning.merging import MemoryLimitError, Merge
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.rules import RULES, MergeRule, get_rule

DATA_FREE = sorted(name for name, rule in RULES.items() if not rule.needs)


@pytest.fixture
def pair(vectors):
    """The task vectors of two tasks, which suit every rule."""
    return vectors.select(["a", "b"])


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8).tolist()


def mask_of(vectors, kept, granularity="module"):
    layers = layers_from_names(vectors.names, granularity)
    return LayerMask(vectors.tasks, layers.names, torch.as_tensor(kept).expand(len(vectors.tasks), len(layers)))


def test_task_arithmetic_equals_the_slow_loop(vectors, base_state, task_states):
    recipe = MergeRecipe("task_arithmetic", scale=0.7, ratio=0.5)
    kept = dict(plan_pruning(vectors, recipe).mask)
    merged = merge(vectors, recipe)
    assert list(merged) == list(base_state)
    assert {all(row.values()) for row in kept.values()} == {False}
    for name, base in base_state.items():
        expected = base.double().clone()
        for task, state in task_states.items():
            if kept[task][name.partition(".")[0]]:
                expected += 0.7 * (state[name].double() - base.double())
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", DATA_FREE)
def test_ratio_0_is_no_pruning_bit_for_bit(rule, pair):
    plain = merge(pair, MergeRecipe(rule))
    nothing_pruned = merge(pair, MergeRecipe(rule, ratio=0, score="l2"), mask=mask_of(pair, True))
    for name in pair.headers:
        assert bits(plain[name]) == bits(nothing_pruned[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", DATA_FREE)
def test_ratio_1_is_the_base_bit_for_bit(rule, dtype, base_state, task_states):
    base = {name: tensor.to(dtype) for name, tensor in base_state.items()}
    base["stem.bias"] = torch.tensor([-0.0, 0.0, 1e-30], dtype=dtype)
    vectors = TaskVectors.open(base, {task: task_states[task] for task in "ab"})
    merged = merge(vectors, MergeRecipe(rule, ratio=1))
    for name, tensor in base.items():
        assert merged[name].dtype == dtype
        assert bits(merged[name]) == bits(tensor)


@pytest.mark.parametrize("rule", DATA_FREE)
def test_a_layer_that_every_task_loses_is_the_bases(rule, pair, base_state):
    base_state["stem.bias"][0] = -0.0
    kept = [layer != "stem" for layer in layers_from_names(pair.names).names]
    merged = merge(pair, MergeRecipe(rule, scale=1.0), mask=mask_of(pair, kept))
    for name in ("stem.weight", "stem.bias"):
        assert bits(merged[name]) == bits(pair.base(name))
    if rule == "task_arithmetic":  # not every rule changes every tensor
        assert not torch.equal(merged["fc.weight"], base_state["fc.weight"])


def test_elements_of_ratio_1_are_the_base_and_of_ratio_0_no_pruning(pair, base_state):
    everything = merge(pair, MergeRecipe(elements=ElementPruning(ratio=1)))
    nothing = merge(pair, MergeRecipe(elements=ElementPruning(ratio=0)))
    plain = merge(pair, MergeRecipe())
    for name, base in base_state.items():
        assert bits(everything[name]) == bits(base)
        assert bits(nothing[name]) == bits(plain[name])


def test_element_pruning_equals_merging_what_is_left(pair, base_state):
    merged = merge(pair, MergeRecipe(scale=1.0, granularity="tensor", elements=ElementPruning(ratio=0.5)))
    tau = pair.stack("fc.weight")
    for row in tau:
        for index in row.abs().flatten().argsort()[: row.numel() // 2]:
            row.flatten()[index] = 0
    torch.testing.assert_close(merged["fc.weight"], base_state["fc.weight"] + tau.sum(0))


@pytest.mark.parametrize("rule", ["task_arithmetic", "simple_average", "dare"])
def test_pruning_the_parts_of_a_linear_rule_is_pruning_its_task_vectors(rule, pair):
    before, after = (
        merge(pair, MergeRecipe(rule, ratio=0.5, prune_on=where), mask=None) for where in ("task_vectors", "parts")
    )
    for name in before:
        torch.testing.assert_close(before[name], after[name])


def test_parts_are_made_of_unpruned_vectors_and_then_pruned(pair, base_state):
    @dataclass(frozen=True, kw_only=True)
    class Shared(MergeRule):
        """Each part is the mean over the tasks: unlike task arithmetic, it sees all of them."""

        name = "shared"
        published_scale = 1.0

        def parts(self, tau, context):
            return tau.mean(0).expand_as(tau)

    kept = torch.tensor([[True], [False]])
    merged = merge(pair, MergeRecipe(Shared(), prune_on="parts"), mask=mask_of(pair, kept))
    torch.testing.assert_close(merged["fc.weight"], base_state["fc.weight"] + pair.stack("fc.weight").mean(0))


def test_given_mask_is_used_instead_of_the_recipes(pair, base_state, task_states):
    merged = merge(pair, MergeRecipe(scale=1.0, ratio=1), mask=mask_of(pair, torch.tensor([[False], [True]])))
    for name in base_state:
        torch.testing.assert_close(merged[name], task_states["b"][name])


def test_plan_pruning_returns_a_mask_that_is_given(pair):
    mask = mask_of(pair, torch.tensor([[False], [True]]))
    assert plan_pruning(pair, MergeRecipe(ratio=0.5), mask=mask).mask is mask


def test_mask_beside_elements(pair):
    with pytest.raises(ValueError, match="cannot stand beside the recipe's elements"):
        merge(pair, MergeRecipe(elements=ElementPruning(ratio=0.5)), mask=mask_of(pair, True))


def test_plan_holds_the_layers_scores_and_mask(vectors):
    plan = plan_pruning(vectors, MergeRecipe(ratio=0.5, ranking="all"))
    assert plan.layers.names == plan.scores.layers == plan.mask.layers == ("fc", "gain", "head", "stem")
    assert (~plan.mask.kept).sum() == 6
    assert plan.scores.values[~plan.mask.kept].max() <= plan.scores.values[plan.mask.kept].min()


def test_result_has_every_tensor_of_the_base_in_its_dtype(base_state, task_states):
    base = base_state | {"steps": torch.tensor(7), "half": torch.ones(2).bfloat16(), "probe": torch.ones(3)}
    tasks = {
        task: state | {"steps": torch.tensor(9), "half": torch.zeros(2).bfloat16(), "probe": torch.zeros(5)}
        for task, state in task_states.items()
    }
    vectors = TaskVectors.open(base, tasks, exclude=("probe",))
    merged = merge(vectors, MergeRecipe())
    assert {name: tensor.dtype for name, tensor in merged.items()} == {n: tensor.dtype for n, tensor in base.items()}
    assert list(merged) == list(base)
    assert torch.equal(merged["steps"], base["steps"])
    assert torch.equal(merged["probe"], base["probe"])


@pytest.mark.parametrize("recipe", [MergeRecipe(), MergeRecipe(ratio=1), MergeRecipe(prune=("fc",))])
def test_writing_into_the_result_changes_no_task_vector(recipe, base_state, task_states):
    base = base_state | {"steps": torch.tensor(7), "probe": torch.ones(3)}
    tasks = {task: state | {"steps": torch.tensor(9), "probe": torch.ones(3)} for task, state in task_states.items()}
    vectors = TaskVectors.open(base, tasks, exclude=("probe",))
    before = {name: vectors.base(name).clone() for name in base}
    for tensor in merge(vectors, recipe).values():
        tensor.fill_(3)
    for name in base:
        assert torch.equal(vectors.base(name), before[name])


def test_float64_is_computed_in_float64(pair, base_state, task_states):
    double = {task: {name: tensor.double() + 1e-9 for name, tensor in task_states[task].items()} for task in "ab"}
    base = {name: tensor.double() for name, tensor in base_state.items()}
    merged = merge(TaskVectors.open(base, double), MergeRecipe(scale=1 / 3), dtype=torch.float64)
    for name, tensor in merged.items():
        expected = base[name] + (double["a"][name] - base[name] + double["b"][name] - base[name]) / 3
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(tensor, expected, rtol=1e-14, atol=1e-14)


def test_other_compute_dtypes_are_refused(pair):
    with pytest.raises(ValueError, match=r"dtype must be torch\.float32 or torch\.float64, not torch\.bfloat16"):
        merge(pair, MergeRecipe(), dtype=torch.bfloat16)


def test_layers_of_another_granularity(pair):
    with pytest.raises(ValueError, match="granularity 'tensor', the recipe's is 'module'"):
        merge(pair, MergeRecipe(ratio=0.5), layers_from_names(pair.names, "tensor"))


@pytest.mark.parametrize("ratio", [0, 0.5])
def test_layers_that_miss_a_tensor(ratio, pair):
    with pytest.raises(ValueError, match=r"in no layer: gain\."):
        merge(pair, MergeRecipe(ratio=ratio), layers_from_names([name for name in pair.names if name != "gain"]))


def test_mask_of_other_layers(pair):
    with pytest.raises(ValueError, match="made for other layers"):
        merge(pair, MergeRecipe(), mask=mask_of(pair, True, granularity="tensor"))


@dataclass(frozen=True, kw_only=True)
class NeedsFisher(MergeRule):
    """Weights each task by its statistics."""

    name = "needs_fisher"
    published_scale = 1.0
    needs = "fisher"

    def combine(self, tau, context):
        return (tau * context.statistics).sum(0)


@dataclass(frozen=True, kw_only=True)
class OwnModels(MergeRule):
    """Gives each task its own vector back."""

    name = "own_models"
    published_scale = 1.0
    per_task = True

    def combine(self, tau, context):
        return tau.mean(0) if context.task is None else tau[context.tasks.index(context.task)]


def test_rule_that_needs_statistics(pair, base_state):
    with pytest.raises(ValueError, match="rule 'needs_fisher' needs statistics=.*fisher"):
        merge(pair, MergeRecipe(NeedsFisher()))
    weights = {"a": 1.0, "b": -2.0}
    statistics = {task: {n: torch.full_like(t, weights[task]) for n, t in base_state.items()} for task in weights}
    merged = merge(pair, MergeRecipe(NeedsFisher()), statistics=statistics)
    tau = pair.stack("fc.weight")
    torch.testing.assert_close(merged["fc.weight"], base_state["fc.weight"] + tau[0] - 2 * tau[1])
    with pytest.raises(ValueError, match="no entry for task 'b'; it has a"):
        merge(pair, MergeRecipe(NeedsFisher()), statistics={"a": statistics["a"]})


def test_model_of_one_task(pair, task_states):
    merged = merge(pair, MergeRecipe(OwnModels()), task="b")
    torch.testing.assert_close(merged["fc.weight"], task_states["b"]["fc.weight"])
    with pytest.raises(UnknownNameError, match="unknown task 'z'"):
        merge(pair, MergeRecipe(OwnModels()), task="z")
    with pytest.raises(ValueError, match="'simple_average' merges all tasks into one model, so task='a'"):
        merge(pair, MergeRecipe("simple_average"), task="a")


def test_fully_pruned_layers_are_not_read(counting_checkpoint, base_state, task_states):
    task, reads = counting_checkpoint(task_states["a"])
    vectors = TaskVectors.open(base_state, {"a": task})
    reads.clear()
    merge(vectors, MergeRecipe(), mask=mask_of(vectors, [True, False, False, True]))
    assert set(reads) == {"stem.weight", "stem.bias", "gain"}


def test_order_of_the_stream_depends_on_nothing_but_the_names(pair):
    recipe = MergeRecipe(ratio=0.5)
    assert [name for name, _ in Merge(pair, recipe).plan().tensors()] == sorted(pair.names)
    program = """
import torch
from lwptv_lightning import MergeRecipe, TaskVectors
from lwptv_lightning.engine import Execution
from lwptv_lightning.merging import Merge, MemoryLimitError
names = ["w", *(f"skipped.{index}" for index in range(20))]
base, task = ({name: torch.full((1,), value) for name in names} for value in (0.0, 1.0))
vectors = TaskVectors.open(base, {"a": task}, exclude=("s*",))
assert [name for name, _ in Merge(vectors, MergeRecipe()).plan().tensors()] == names
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_rules_by_name_mapping_or_object_agree(pair):
    results = [
        merge(pair, MergeRecipe(rule))["fc.weight"]
        for rule in ({"name": "ties", "density": 0.5}, get_rule("ties")(density=0.5))
    ]
    assert torch.equal(*results)
    assert not torch.equal(results[0], merge(pair, MergeRecipe("ties"))["fc.weight"])


# Batch normalisation


def batch_norm_states():
    base = {"bn.weight": torch.ones(2), "bn.running_mean": torch.zeros(2), "bn.running_var": torch.ones(2)}
    base["bn.num_batches_tracked"] = torch.tensor(5)
    tasks = {}
    for task, variance in {"a": 0.1, "b": 0.2, "c": 0.6}.items():
        changed = {"bn.running_var": torch.full((2,), variance), "bn.running_mean": torch.full((2,), 3 * variance)}
        tasks[task] = base | changed | {"bn.weight": torch.full((2,), 1.5)}
    return base, tasks


@pytest.mark.parametrize("rule", ["task_arithmetic", "ties", "dare", "iso_c"])
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_running_statistics_are_averaged_whatever_the_rule_and_scale(rule, scale):
    base, tasks = batch_norm_states()
    merged = merge(TaskVectors.open(base, tasks), MergeRecipe(rule, scale))
    torch.testing.assert_close(merged["bn.running_var"], torch.full((2,), 0.3))
    torch.testing.assert_close(merged["bn.running_mean"], torch.full((2,), 0.9))
    assert merged["bn.num_batches_tracked"] == 5


def test_a_pruned_task_counts_with_the_bases_statistics():
    base, tasks = batch_norm_states()
    vectors = TaskVectors.open(base, tasks)
    pruned = merge(vectors, MergeRecipe(prune=["bn"]))
    assert torch.equal(pruned["bn.running_var"], base["bn.running_var"])
    mask = LayerMask(("a", "b", "c"), ("bn",), torch.tensor([[True], [False], [False]]))
    merged = merge(vectors, MergeRecipe(scale=4.0), mask=mask)
    torch.testing.assert_close(merged["bn.running_var"], torch.full((2,), (0.1 + 1 + 1) / 3))


def test_a_lone_running_mean_is_merged_like_a_weight():
    merged = merge(
        TaskVectors.open({"running_mean": torch.zeros(1)}, {"a": {"running_mean": torch.ones(1)}}),
        MergeRecipe(scale=3.0),
    )
    assert merged["running_mean"].item() == 3


@pytest.mark.parametrize("function", [merge, plan_pruning])
def test_an_option_that_is_none_is_refused_by_name(function, pair):
    with pytest.raises(TypeError, match=rf"{function.__name__} has no argument 'maks', .*Did you mean 'mask'\?"):
        function(pair, MergeRecipe(), maks=None)
    with pytest.raises(TypeError, match=rf"{function.__name__} has no argument 'layer', .*Did you mean 'layers'\?"):
        function(pair, MergeRecipe(), layer=None)


def test_dtype_and_task_stand_in_the_recipe_and_are_taken_as_arguments_still(pair):
    as_arguments = merge(pair, MergeRecipe("emr"), dtype=torch.float64, task="b")
    in_the_recipe = merge(pair, MergeRecipe("emr", dtype="float64", task="b"))
    assert all(torch.equal(tensor, in_the_recipe[name]) for name, tensor in as_arguments.items())
    with pytest.raises(UnknownNameError, match=r"unknown task 'c'\."):
        merge(pair, MergeRecipe("emr", task="c"))


def test_scores_take_the_place_of_the_recipes_score(pair):
    recipe = MergeRecipe("ties", ratio=0.5)
    own = plan_pruning(pair, recipe)
    turned = dataclasses.replace(own.scores, values=-own.scores.values)
    plan = Merge(pair, recipe, scores=turned).plan()
    assert torch.equal(plan.pruning.mask.kept, plan_pruning(pair, recipe.replace(score="-mean_abs")).mask.kept)
    other = dataclasses.replace(own.scores, tasks=("x", "y"))
    with pytest.raises(ValueError, match=r"must be of the tasks \['a', 'b'\], not of \['x', 'y'\]"):
        merge(pair, recipe, scores=other)


def test_statistics_at_hand_are_not_collected_anew(pair, counting_checkpoint, base_state, task_states):
    task, reads = counting_checkpoint(task_states["a"])
    vectors = TaskVectors.open(base_state, {"a": task})
    layers = layers_from_names(vectors.names)
    statistics = collect_statistics(vectors, layers)
    expected = plan_pruning(vectors, MergeRecipe(ratio=0.5))
    reads.clear()
    assert plan_pruning(vectors, MergeRecipe(ratio=0.5), statistics=statistics).mask == expected.mask
    assert not reads


def test_what_is_given_beside_an_execution_goes_before_it_and_nothing_is_dropped(pair):
    merged, execution = Merge.of(pair, "ties", None, {"execution": Execution(block_bytes=64), "max_memory": "1GB"})
    assert (execution.max_memory, execution.block_bytes, merged.recipe) == (10**9, 64, MergeRecipe("ties"))
    with pytest.raises(MemoryLimitError, match="max_memory is 0 MB"):
        merge(pair, "iso_c", execution=Execution(), max_memory=1)
    with pytest.raises(TypeError, match="execution must be an Execution, not 'cpu'"):
        merge(pair, "ties", execution="cpu")
    assert Merge(pair, "ties").recipe == MergeRecipe("ties")
    data = {task: {} for task in pair.tasks}
    with pytest.raises(TypeError, match=r"statistics=\.\.\. and data=\.\.\. both are"):
        merge(pair, "fisher", statistics=data, data=data)

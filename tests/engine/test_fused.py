"""Merges by compiled kernels are those of torch, whatever the rule, the recipe and the weights."""

import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from _helpers.every_rule import statistics_for, vectors_for
from _helpers.kernels import COMPILED, PLAIN, Rows, assert_compiled_is_plain, everything, ragged_vectors
from _helpers.states import noise, random_state, watched
from safetensors.torch import save_file

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.engine import (
    FUSED_BASES,
    Program,
    Threads,
    UnfusableError,
    begin_limits,
    merge_fused,
    statistics_fused,
)
from lwptv_lightning.engine.fused import gather_fused, kernels_exist, vote_fused
from lwptv_lightning.engine.program import Above, Between, Drop
from lwptv_lightning.functional import random_keep
from lwptv_lightning.merging import Merge
from lwptv_lightning.rules import RULES

_combine = import_module("lwptv_lightning.merging.combine")
_stream = import_module("lwptv_lightning.engine.stream")
_order_statistics = import_module("lwptv_lightning.engine.order_statistics")

MERGING = {
    "adamerging",
    "breadcrumbs",
    "breadcrumbs_ties",
    "consensus_ta",
    "consensus_ties",
    "dare",
    "dare_ties",
    "magnitude",
    "simple_average",
    "task_arithmetic",
    "ties",
    "weighted_average",
}
"""Rules that kernels merge."""
SEARCHING = {"consensus_ties", "dare_ties", "knots_ties", "magnitude", "ties"}
"""Those for which kernels search for thresholds."""
VOTING = {"consensus_ties", "dare_ties", "knots_ties", "ties"}
"""Those for which kernels count elected signs."""


@pytest.fixture
def used(monkeypatch):
    """Which kernels were used."""
    seen = set()

    def watch(module, name):
        real = getattr(module, name)

        def call(*arguments):
            seen.add(name)
            return real(*arguments)

        monkeypatch.setattr(module, name, call)

    watch(_combine, "merge_fused")
    watch(_stream, "vote_fused")
    watch(_order_statistics, "gather_fused")
    return seen


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_merges_the_same_and_those_that_can_by_kernels(rule, used):
    vectors = vectors_for(rule)
    data = statistics_for(rule, vectors)
    for recipe in (MergeRecipe(rule), MergeRecipe(rule, ratio=0.5, granularity="tensor")):
        assert_compiled_is_plain(vectors, recipe, **({} if data is None else {"data": data}))
    expected = {"merge_fused": MERGING, "gather_fused": SEARCHING, "vote_fused": VOTING}
    assert used == {kernel for kernel, rules in expected.items() if rule in rules}


FORMS = [
    {"name": "task_arithmetic", "coefficients": (0.3, -1.5, 1 / 3)},
    {"name": "weighted_average", "weights": (1, 2, 4)},
    {"name": "weighted_average", "weights": (0.1, 0.2, -0.4), "normalize": False},
    {"name": "ties", "reduce": "sum"},
    {"name": "ties", "reduce": "max", "density": 0.7},
    {"name": "ties", "density": 1.0},
    {"name": "ties", "scope": "tensor"},
    {"name": "ties", "scope": "tensor", "reduce": "max", "density": 1e-6},
    {"name": "magnitude", "scope": "tensor"},
    {"name": "magnitude", "scope": "tensor", "density": 1.0},
    {"name": "dare", "density": 0.1, "seed": 5},
    {"name": "dare", "density": 1.0},
    {"name": "dare", "density": 1 - 1e-11},
    {"name": "dare_ties", "reduce": "mean"},
    {"name": "breadcrumbs", "density": 0.5, "outliers": 0.3},
    {"name": "breadcrumbs", "density": 0.9, "outliers": 0.5},
    {"name": "breadcrumbs_ties", "reduce": "max"},
    {"name": "consensus_ta", "tall_lambda": 0.0, "min_tasks": 3},
    {"name": "consensus_ta", "min_tasks": 0},
    {"name": "consensus_ties", "reduce": "mean"},
    {"name": "adamerging", "coefficients": {"coarse*": (0.1, 0.2, 0.3), "*": (1, 0, -1)}},
]


@pytest.mark.parametrize("rule", FORMS, ids=str)
def test_so_do_their_forms_at_the_borders_of_tiles_and_where_votes_are_tied(rule, used):
    assert_compiled_is_plain(ragged_vectors(), MergeRecipe(rule))
    assert "merge_fused" in used


def test_a_form_that_no_kernel_computes_is_merged_by_torch(used):
    some = {"name": "adamerging", "coefficients": {"normal*": (0.1, 0.2, 0.3)}}
    assert_compiled_is_plain(ragged_vectors(), MergeRecipe(some))
    used.clear()
    assert_compiled_is_plain(ragged_vectors(), MergeRecipe({"name": "adamerging", "plus_plus": True}))
    assert "merge_fused" not in used


PRUNED = [
    {"ratio": 0.5},
    {"ratio": 0.5, "score": "random"},
    {"ratio": 0.5, "ranking": "all"},
    {"ratio": 1.0},
    {"elements": {"ratio": 0.4}},
    {"layer_scaling": {"normal33.weight": 0.5, "coarse1025.weight": -2.0}},
    {"scale": -1.7},
]


@pytest.mark.parametrize("pruned", PRUNED, ids=str)
@pytest.mark.parametrize("rule", ["task_arithmetic", "ties", "breadcrumbs_ties", "dare_ties", "consensus_ties"])
def test_recipes_that_prune_and_scale(rule, pruned):
    vectors = ragged_vectors(sizes=(1, 33, 1025))
    assert_compiled_is_plain(vectors, MergeRecipe(rule, granularity="tensor", **pruned))


@pytest.mark.parametrize("rule", ["task_arithmetic", "breadcrumbs", "magnitude", "dare"])
def test_recipes_that_prune_parts(rule):
    recipe = MergeRecipe(rule, granularity="tensor", ratio=0.5, score="random", prune_on="parts")
    assert_compiled_is_plain(ragged_vectors(sizes=(1, 33, 1025)), recipe)


DTYPES = {
    "bfloat16": (torch.bfloat16, (torch.bfloat16,)),
    "float16": (torch.float16, (torch.float16,)),
    "float64": (torch.float64, (torch.float64,)),
    "mixed": (torch.float32, (torch.bfloat16, torch.float16, torch.float64)),
    "mixed over bfloat16": (torch.bfloat16, (torch.float32, torch.bfloat16, torch.float64)),
}


@pytest.mark.filterwarnings("ignore:task 'task1' .* zeroed. denormal")  # which float16 cannot hold
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("rule", ["task_arithmetic", "ties", "breadcrumbs", "dare_ties", "consensus_ta"])
def test_weights_of_any_dtype(rule, dtypes):
    assert_compiled_is_plain(ragged_vectors(3, *dtypes, sizes=(0, 1, 33, 1025)), MergeRecipe(rule, scale=0.7))


def test_float64_is_left_to_torch(used):
    assert_compiled_is_plain(ragged_vectors(2), MergeRecipe("ties", dtype="float64"))
    assert used == set()
    assert torch.float64 not in FUSED_BASES


@pytest.mark.parametrize("tasks", [1, 2, 8, 20])
@pytest.mark.parametrize("rule", ["simple_average", "ties", "breadcrumbs_ties", "consensus_ties"])
def test_any_number_of_tasks(rule, tasks):
    assert_compiled_is_plain(ragged_vectors(tasks, sizes=(33, 1025)), MergeRecipe(rule))


@pytest.mark.parametrize("rule", ["task_arithmetic", "ties", "breadcrumbs_ties", "dare_ties", "consensus_ties"])
def test_blocks_of_any_size(rule, monkeypatch):
    vectors = ragged_vectors(3, sizes=(1, 5000))
    monkeypatch.setattr("lwptv_lightning.engine.execution._FUSED_BYTES", 3 * 4 * 700)
    assert_compiled_is_plain(vectors, MergeRecipe(rule, ratio=0.3, granularity="tensor"))


def test_tied_weights_and_running_statistics():
    shapes = {"embed.weight": (40, 30), "norm.weight": (30,), "fc.weight": (30, 30), "norm.running_mean": (30,)}

    def state(seed, base):
        found = noise(base, seed)
        variance = random_state(seed, shapes={"norm.running_var": (30,)})
        found |= {name: values.square() for name, values in variance.items()}
        return found | {"head.weight": found["embed.weight"], "norm.num_batches_tracked": torch.tensor(7)}

    base = state(0, random_state(0, shapes=shapes))
    tasks = {task: state(seed, base) for seed, task in enumerate("ab", start=1)}
    vectors = TaskVectors.open(base, tasks)
    for recipe in (MergeRecipe("ties"), MergeRecipe("breadcrumbs", scale=3.0)):
        merged = assert_compiled_is_plain(vectors, recipe)
        assert torch.equal(merged["head.weight"], merged["embed.weight"])
        assert merged["norm.running_var"].min() >= 0


@pytest.mark.parametrize("rule", ["task_arithmetic", "ties", "breadcrumbs_ties", "dare_ties"])
def test_differences_stand_beside_weights(rule, tmp_path):
    base = random_state(0, shapes={"a.weight": (40, 30), "b.weight": (5, 5), "c.weight": (3,)})
    tasks = {"weights": {name: values.bfloat16() for name, values in noise(base, 1).items()}}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        changes = {name: (0.1 * values).to(dtype) for name, values in random_state(2, shapes=_shapes(base)).items()}
        del changes["b.weight"]  # which is the base's
        tasks[str(dtype)] = tmp_path / f"{dtype}.safetensors"
        save_file(changes, tasks[str(dtype)], metadata={"lwptv_kind": "task_vector"})
    vectors = TaskVectors.open(base, tasks)
    for recipe in (MergeRecipe(rule), MergeRecipe(rule, ratio=0.4, granularity="tensor")):
        assert_compiled_is_plain(vectors, recipe)


def _shapes(state):
    return {name: tuple(values.shape) for name, values in state.items()}


@pytest.mark.parametrize("rule", ["ties", "breadcrumbs_ties"])
def test_tensors_of_several_blocks_of_the_usual_size(rule):
    generator = torch.Generator().manual_seed(0)
    size = 2**18 + 5
    base = {"w": torch.randn(size, generator=generator)}
    tasks = {str(task): {"w": base["w"] + 0.1 * torch.randn(size, generator=generator)} for task in range(20)}
    assert COMPILED.fused_bytes < 20 * 4 * size
    assert_compiled_is_plain(TaskVectors.open(base, tasks), MergeRecipe(rule))


@pytest.mark.parametrize("prune_on", ["task_vectors", "parts"])
def test_a_pruned_task_is_not_read(prune_on):
    base = random_state(0, shapes={"a.weight": (40, 30), "b.weight": (40, 30)})
    small, large = noise(base, 1, 0.01), noise(base, 2, 0.5)
    first, first_reader = watched({"a.weight": small["a.weight"], "b.weight": large["b.weight"]})
    second, second_reader = watched({"a.weight": large["a.weight"], "b.weight": small["b.weight"]})
    vectors = TaskVectors.open(base, {"first": first, "second": second})
    recipe = MergeRecipe("breadcrumbs", ratio=0.5, granularity="tensor", prune_on=prune_on)
    merge(vectors, recipe)  # reads a sample of all weights, to tell whether they are of one base
    reads = {}
    for execution in (PLAIN, COMPILED):
        plan = Merge(vectors, recipe).plan(execution)
        for reader in (first_reader, second_reader):
            reader.reads.clear()
        dict(plan.tensors())
        reads[execution.compiled] = (dict(first_reader.reads), dict(second_reader.reads))
    assert reads[True] == reads[False] == ({"b.weight": 1}, {"a.weight": 1})


BROKEN = [torch.nan, torch.inf, -torch.inf]


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("place", [0, 1023, 1024, 1040])
def test_values_that_are_not_finite_are_told_to_torch(value, place):
    stack = Rows([torch.ones(1041), torch.ones(1041)])
    here, program = everything(stack), Program(2)
    ends = np.array([0.0, 0.0], np.float32), np.array([2.0, 2.0], np.float32)
    functions = [
        lambda: merge_fused(program, stack, here),
        lambda: merge_fused(program, stack, here, scale=0.5),
        lambda: vote_fused(program, stack, here),
        lambda: gather_fused(program, stack, here, *ends),
        lambda: statistics_fused(stack, here),
        lambda: begin_limits(Threads(1).submit, Program(2, limits=Above(0.5)), stack)(),
        lambda: begin_limits(Threads(1).submit, Program(2, limits=Between(0.5, 0.1)), stack)(),
    ]
    for function in functions:
        function()
    stack.rows[1][place] = value
    for function in functions:
        with pytest.raises(UnfusableError):
            function()


def test_sums_that_overflow_are_told_to_torch_too():
    stack = Rows([torch.full((5,), 3e38), torch.full((5,), 3e38)])
    with pytest.raises(UnfusableError):
        merge_fused(Program(2), stack, everything(stack))
    stack = Rows([torch.full((5,), 3e38)])
    assert merge_fused(Program(1), stack, everything(stack)).tolist() == stack.rows[0].tolist()
    with pytest.raises(UnfusableError):
        merge_fused(Program(1), stack, everything(stack), scale=2.0)


@pytest.mark.parametrize("first", [0, 5, 2**31 - 700, 2**32 - 1500, 2**32, 2**33 + 77])
def test_draws_are_those_of_the_position(first):
    stack = Rows([torch.ones(1500), torch.ones(1500)], first=first)
    drop = Drop(0.3, 4, ("a", "b"), "w")
    found = merge_fused(Program(2, drop=drop), stack, everything(stack))
    kept = random_keep(1500, 0.3, 4, ("a", "b"), "w", start=first)
    assert torch.equal(found, (kept / 0.3).sum(0))
    votes = vote_fused(Program(2, drop=drop), stack, everything(stack))
    assert votes == kept.amax(0).sum()


def test_draws_of_two_keys_are_left_to_torch():
    stack = Rows([torch.ones(8)], first=2**32 - 4)
    with pytest.raises(UnfusableError):
        merge_fused(Program(1, drop=Drop(0.3, 4, ("a",), "w")), stack, everything(stack))
    assert merge_fused(Program(1), stack, everything(stack)).tolist() == [1.0] * 8


def test_numba_is_found_where_it_is():
    assert kernels_exist()
    assert "numba" in sys.modules or merge(ragged_vectors(1, sizes=(1,)), "ties", execution=COMPILED)

"""Merges of one module decompose each matrix of each task once between them, and each gives what it gives alone."""

from importlib import import_module

import pytest
import torch
from _helpers.states import assert_same_bits
from _helpers.swept import small_loaders, small_module, small_samples

from lwptv_lightning import LiNeS, MergeRecipe, merge
from lwptv_lightning.engine import Execution, Memo
from lwptv_lightning.evaluation import remembering, with_memo
from lwptv_lightning.functional import decompose
from lwptv_lightning.search import Gates, sweep, tune
from lwptv_lightning.search.weights import Weights

_base = import_module("lwptv_lightning.rules._base")

RULES = ("tsv_m", "iso_c", "iso_cts")
BY_DEPTH = LiNeS(alpha=None, blocks=r"^(\d+)\.")
FIELDS = [{}, {"scale": 0.5}, {"ratio": 0.5}, {"ratio": 0.5, "prune_on": "parts"}, {"layer_scaling": BY_DEPTH}]
CALIBRATIONS = [{"name": "subspace_boosting", "beta": beta} for beta in (0.1, 0.4)]
RECIPES = {f"{rule} {fields}": MergeRecipe(rule, **fields) for rule in RULES for fields in FIELDS}
RECIPES |= {f"tsv_m {each}": MergeRecipe("tsv_m", calibrate=each) for each in (*CALIBRATIONS, "svc")}
SEEN = []


def watched_decompose(matrix):
    """Decompose, and note what."""
    SEEN.append((tuple(matrix.shape), matrix.numpy().tobytes()))
    return decompose(matrix)


@pytest.fixture
def decomposed(monkeypatch):
    SEEN.clear()
    monkeypatch.setattr(_base, "decompose", watched_decompose)
    return SEEN


def of_tasks(module):
    """What all matrices of all tasks are."""
    vectors = module.vectors
    stacks = {name: vectors.stack(name) for name in vectors.names if len(vectors.headers[name].shape) == 2}
    return {(tuple(each.shape), each.numpy().tobytes()) for stack in stacks.values() for each in stack}


def test_a_sweep_of_rules_scales_masks_and_scalings_decomposes_each_matrix_once(decomposed, make_trainer):
    module = small_module()
    sweep(make_trainer(), module, RECIPES, small_loaders())
    assert module.memo is None
    assert len(decomposed) == len(set(decomposed))
    assert of_tasks(module) <= set(decomposed)
    alone = list(decomposed)
    for recipe in RECIPES.values():
        merge(module.vectors, recipe, module.layers(recipe.granularity) if recipe.needs_layers else None)
    assert len(decomposed) - len(alone) > 2 * len(alone)


def test_candidates_have_the_bits_of_merges_that_share_nothing(decomposed):
    module = small_module()
    with remembering(module):
        made = {each.name: each for each in Weights(module, torch.device("cpu"), {}).of(RECIPES)}
    for name, recipe in RECIPES.items():
        layers = module.layers(recipe.granularity) if recipe.needs_layers else None
        merged = merge(module.vectors, recipe, layers)
        assert_same_bits(made[name].tensors, {each: merged[each] for each in made[name].tensors})


def test_a_search_and_its_controls_decompose_each_matrix_once(decomposed, make_trainer):
    module, loaders = small_module(), small_loaders()
    space = {"rules": ["tsv_m"], "scales": [0.5, 1.0], "ratios": [0.5], "scores": ["rms"]}
    tune(make_trainer(), module, None, loaders, budget=6, space=space, masks=2, recalibrate=False)
    assert len(decomposed) == len(set(decomposed))


def test_gates_that_are_learnt_share_with_the_candidates(decomposed, make_trainer):
    module = small_module()
    candidates = {"gates": Gates(rule="tsv_m", steps=1), "plain": "tsv_m"}
    sweep(make_trainer(), module, candidates, small_loaders(), samples=small_samples())
    assert len(decomposed) == len(set(decomposed))


def test_a_module_remembers_from_its_second_merge_on(decomposed):
    module = small_module("tsv_m")
    counts = []
    for _ in range(4):
        decomposed.clear()
        module.merge_()
        counts.append(len(decomposed))
    assert counts[0] == counts[1] > 0
    assert counts[2:] == [0, 0]


def test_what_is_remembered_is_that_of_the_block():
    module = small_module()
    with remembering(module):
        memo = module.memo
        with remembering(module):
            assert module.memo is memo
        assert module.memo is memo
    assert module.memo is None
    with pytest.raises(RuntimeError, match="halfway"), remembering(module):
        raise RuntimeError("halfway")
    assert module.memo is None


def test_an_executions_own_memo_goes_first():
    own, memo = Memo(), Memo()
    assert with_memo({"execution": Execution(memo=own)}, memo)["execution"].memo is own
    assert with_memo({"execution": Execution(block_bytes=64)}, memo)["execution"].block_bytes == 64
    assert with_memo({}, memo)["execution"].memo is memo
    assert with_memo({"max_memory": "1GB"}, None) == {"max_memory": "1GB"}
    assert with_memo({"execution": "wrong"}, memo) == {"execution": "wrong"}  # which merging refuses

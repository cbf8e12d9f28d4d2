"""Matrices of tensors of one shape are decomposed at once, before the rule asks, and within the memo's bytes."""

import pytest
import torch
from _helpers.small_matrices import assert_near, vectors_of

from lwptv_lightning import LayerMask, Merge, MergeRecipe, layers_from_names, merge
from lwptv_lightning.engine import Execution, Memo
from lwptv_lightning.functional import decompose
from lwptv_lightning.merging.ahead import decomposed_ahead
from lwptv_lightning.merging.combine import merged_pieces
from lwptv_lightning.merging.memory import bytes_of_tensor

SHAPES = {f"blocks.{block}.{name}": shape for block in range(3) for name, shape in (("qkv", (6, 4)), ("fc", (4, 6)))}
SHAPES |= {"blocks.0.bias": (4,), "small": (1, 6), "conv.weight": (6, 4, 1, 1)}
RULES = ["tsv_m", "score", {"name": "dc_merge", "keep": 0.5}]


@pytest.fixture(scope="module")
def two():
    generator = torch.Generator().manual_seed(0)
    return vectors_of({name: torch.randn(2, *shape, generator=generator) for name, shape in SHAPES.items()})


@pytest.fixture
def stacks(monkeypatch):
    """The shapes of what is decomposed."""
    seen, plain = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda gram: seen.append(tuple(gram.shape)) or plain(gram))
    return seen


def plan_of(vectors, recipe, memo=None, **options):
    return Merge(vectors, recipe, **options).plan(Execution(memo=Memo() if memo is None else memo))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_what_the_rule_will_ask_for_is_decomposed_in_one_stack_for_each_shape(rule, two, stacks):
    plan = plan_of(two, MergeRecipe(rule))
    names = list(plan.jobs)
    assert list(decomposed_ahead(plan.jobs, names)) == names
    assert stacks == [(2 * 3, 4, 4), (2 * 3, 4, 4), (2, 4, 4)]
    stacks.clear()
    made = {piece.name: piece.merged for piece in merged_pieces(plan.jobs)}
    assert all(len(shape) == 2 for shape in stacks), "a task's matrix was decomposed again"
    expected = merge(two, MergeRecipe(rule, 1.0))
    for name, merged in made.items():
        assert_near(merged.reshape(SHAPES[name]), expected[name], 1e-6)


def test_a_calibrated_rule_asks_for_the_same(two, stacks):
    plan = plan_of(two, MergeRecipe("tsv_m", calibrate="svc"))
    list(decomposed_ahead(plan.jobs, list(plan.jobs)))
    assert stacks == [(2 * 3, 4, 4), (2 * 3, 4, 4), (2, 4, 4)]


def test_a_group_is_as_large_as_half_of_the_memo_allows(two, stacks):
    memo = Memo()
    plan = plan_of(two, MergeRecipe("tsv_m"), memo)
    each = bytes_of_tensor(plan.recipe.rule, plan.stream, "blocks.0.qkv")
    memo.allow(2 * 2 * each)
    list(decomposed_ahead(plan.jobs, list(plan.jobs)))
    assert stacks == [(4, 4, 4), (4, 4, 4), (2, 4, 4), (2, 4, 4), (2, 4, 4)]
    assert memo.held <= memo.limit
    stacks.clear()
    memo.allow(each)  # too little for any
    list(decomposed_ahead(plan.jobs, list(plan.jobs)))
    assert not stacks


@pytest.mark.parametrize("rule", ["iso_c", "task_arithmetic", "ties"])
def test_other_rules_have_nothing_decomposed(rule, two, stacks):
    plan = plan_of(two, MergeRecipe(rule))
    stacks.clear()
    assert list(decomposed_ahead(plan.jobs, list(plan.jobs))) == list(plan.jobs)
    assert not stacks


def test_where_all_is_pruned_nothing_is_read(two, stacks):
    layers = layers_from_names(two.names)
    mask = LayerMask(two.tasks, layers.names, torch.zeros(2, len(layers), dtype=torch.bool))
    plan = plan_of(two, MergeRecipe("tsv_m"), layers=layers, mask=mask)
    list(decomposed_ahead(plan.jobs, list(plan.jobs)))
    assert not stacks


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_stacks_give_what_the_cpu_does_but_for_rounding(two):
    for rule in RULES:
        expected = merge(two, MergeRecipe(rule))
        for name, merged in merge(two, MergeRecipe(rule), device="cuda").items():
            assert_near(merged.cpu(), expected[name], 1e-5)
    alone, together = decompose(torch.ones(2, 3, device="cuda")), decompose(torch.ones(4, 2, 3, device="cuda"))
    assert_near(alone.values.cpu(), together.values[2].cpu(), 1e-12)

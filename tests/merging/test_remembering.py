"""Merges of several passes, or one after another, decompose no tensor twice, and get the same bits."""

from functools import partial

import pytest
import torch
from _helpers.every_rule import statistics_for, vectors_for
from _helpers.small_matrices import vectors_of
from _helpers.states import assert_same_bits

from lwptv_lightning import LiNeS, Merge, MergeRecipe, merge
from lwptv_lightning.engine import Execution, Memo
from lwptv_lightning.rules import RULES

SHAPES = {"blocks.0.mlp.weight": (6, 4), "blocks.1.mlp.weight": (4, 9), "norm.bias": (4,), "head.weight": (5, 5)}


@pytest.fixture(scope="module")
def three():
    generator = torch.Generator().manual_seed(0)
    return vectors_of({name: torch.randn(3, *shape, generator=generator) for name, shape in SHAPES.items()})


def counting(seen, plain, *given, **more):
    seen.append(1)
    return plain(*given, **more)


@pytest.fixture
def decomposed(monkeypatch):
    """How many matrices were decomposed."""
    seen = []
    for name in ("eigh", "svd"):
        plain = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, partial(counting, seen, plain))
    return seen


def test_a_merge_of_one_pass_has_no_memo(three):
    assert Merge(three, MergeRecipe("tsv_m")).plan().execution.memo is None
    assert Merge(three, MergeRecipe("tsv_m", layer_scaling=LiNeS(alpha=0.5))).plan().execution.memo is None


def test_a_merge_of_two_passes_decomposes_once(three, decomposed):
    merge(three, MergeRecipe("iso_c"))
    once = len(decomposed)
    assert once == 3
    merge(three, MergeRecipe("iso_c", layer_scaling=LiNeS(alpha=None)))
    assert len(decomposed) == 2 * once


def test_merges_with_one_memo_decompose_each_matrix_of_each_task_once(three, decomposed):
    execution = Execution(memo=Memo())
    for scale in (0.5, 1.0):
        merge(three, MergeRecipe("tsv_m", scale), execution=execution)
    polar_factors = 2 * 2 * 3
    assert len(decomposed) == 3 * 3 + polar_factors


def test_no_rule_has_other_bits_for_what_is_remembered_nor_writes_to_it():
    memo, fewer_steps = Memo(), {"wudi": {"steps": 3}}
    for rule in sorted(RULES):
        vectors = vectors_for(rule)
        data = statistics_for(rule, vectors)
        recipe = MergeRecipe({"name": rule, **fewer_steps.get(rule, {})}, ratio=0.4, granularity="tensor")
        expected = merge(vectors, recipe, data=data)
        for _ in range(2):
            assert_same_bits(merge(vectors, recipe, data=data, execution=Execution(memo=memo)), expected)


@pytest.mark.parametrize("rule", ["tsv_m", "iso_c", "iso_cts", "knots_ties"])
def test_threads_share_a_memo_and_get_the_bits_of_one(rule, three, use_threads):
    expected, memo = merge(three, MergeRecipe(rule)), Memo()
    for threads in (2, 1, 3):
        use_threads(threads)
        assert_same_bits(merge(three, MergeRecipe(rule), execution=Execution(memo=memo)), expected)


def test_what_is_remembered_counts_as_memory(three):
    memo, recipe = Memo(), MergeRecipe("tsv_m")
    merge(three, recipe, execution=Execution(memo=memo))
    assert 0 < memo.held < memo.limit
    free = memo.held
    plan = Merge(three, recipe).plan(Execution(memo=memo, max_memory="100MB"))
    assert memo.limit < 100_000_000 - 16 * (1 << 21)
    limit = memo.limit
    plan.holding()
    merged = sum(tensor.numel() for tensor in merge(three, recipe).values())
    assert memo.limit == limit - 4 * merged
    assert memo.held >= free
    least = 16 * (1 << 21) + 14 * 3 * 36 * 4  # what the merge itself takes
    merge(three, recipe, execution=Execution(memo=memo, max_memory=least))
    assert memo.limit == memo.held == 0

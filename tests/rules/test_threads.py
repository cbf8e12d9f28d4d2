"""Merges that run at the same time in threads are those that run alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.engine import Execution


@pytest.fixture(scope="module")
def vectors():
    generator = torch.Generator().manual_seed(0)
    base = {f"{number}.weight": torch.zeros(40, 30) for number in range(20)}
    tasks = {task: {name: torch.randn(40, 30, generator=generator) for name in base} for task in "abc"}
    return TaskVectors.open(base, tasks)


@pytest.mark.parametrize("rule", ["dare", "dare_ties", "della", "ties", "iso_c"])
def test_concurrent_merges_are_the_same_as_alone(rule, vectors):
    recipes = [MergeRecipe(rule, ratio=ratio) for ratio in (0.0, 0.5)]
    alone = [merge(vectors, recipe) for recipe in recipes]

    def differs(number):
        merged = merge(vectors, recipes[number % 2])
        return any(not torch.equal(merged[name], tensor) for name, tensor in alone[number % 2].items())

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(differs, range(160 if "d" in rule else 16))) == 0


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rule", ["dare_ties", "breadcrumbs", "iso_c"])
def test_so_are_those_that_use_threads_of_their_own(rule, compiled, vectors, use_threads):
    recipe = MergeRecipe(rule, ratio=0.5)
    alone = merge(vectors, recipe, execution=Execution(compiled=False))
    use_threads(2)  # in each of them

    def differs(_):
        merged = merge(vectors, recipe, execution=Execution(compiled=compiled))
        return any(not torch.equal(merged[name], tensor) for name, tensor in alone.items())

    with ThreadPoolExecutor(2) as threads:
        assert sum(threads.map(differs, range(6))) == 0
    assert torch.get_num_threads() == 2

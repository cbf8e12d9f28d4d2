"""Merges that run at the same time in threads are those that run alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lwptv_lightning import MergeRecipe, TaskVectors, merge


@pytest.mark.parametrize("rule", ["dare", "dare_ties", "della", "ties", "iso_c"])
def test_concurrent_merges_are_the_same_as_alone(rule):
    generator = torch.Generator().manual_seed(0)
    base = {f"{number}.weight": torch.zeros(40, 30) for number in range(20)}
    tasks = {task: {name: torch.randn(40, 30, generator=generator) for name in base} for task in "abc"}
    vectors = TaskVectors.open(base, tasks)
    recipes = [MergeRecipe(rule, ratio=ratio) for ratio in (0.0, 0.5)]
    alone = [merge(vectors, recipe) for recipe in recipes]

    def differs(number):
        merged = merge(vectors, recipes[number % 2])
        return any(not torch.equal(merged[name], tensor) for name, tensor in alone[number % 2].items())

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(differs, range(160 if "d" in rule else 16))) == 0

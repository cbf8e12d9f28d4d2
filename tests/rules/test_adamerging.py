"""The rule AdaMerging: coefficients by tensor, and the TIES split of AdaMerging++."""

import pytest
import torch

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.rules.adamerging import AdaMerging


def make_vectors() -> TaskVectors:
    torch.manual_seed(0)
    base = {"stem.w": torch.randn(6), "head.w": torch.randn(6)}
    return TaskVectors.open(base, {task: {n: v + torch.randn(6) for n, v in base.items()} for task in "ab"})


def test_the_first_matching_glob_gives_the_coefficients() -> None:
    vectors = make_vectors()
    merged = merge(vectors, MergeRecipe(AdaMerging(coefficients={"stem.*": [0.2, 0.7], "*": [1, 0]})))
    for name, (a, b) in {"stem.w": (0.2, 0.7), "head.w": (1, 0)}.items():
        first, second = vectors.stack(name)
        torch.testing.assert_close(merged[name], vectors.base(name) + a * first + b * second)


def test_tensors_that_no_glob_matches_stay_at_the_base() -> None:
    vectors = make_vectors()
    merged = merge(vectors, MergeRecipe(AdaMerging(coefficients={"stem.*": [1, 1]})))
    assert torch.equal(merged["head.w"], vectors.base("head.w"))


def test_without_coefficients_it_is_task_arithmetic_at_its_published_scale() -> None:
    vectors = make_vectors()
    merged, expected = (merge(vectors, MergeRecipe(rule)) for rule in ("adamerging", "task_arithmetic"))
    for name in vectors.names:
        torch.testing.assert_close(merged[name], expected[name])


def test_plus_plus_with_equal_coefficients_is_the_sum_of_ties() -> None:
    vectors = make_vectors()
    rule = AdaMerging(coefficients={"*": [0.4, 0.4]}, plus_plus=True, density=0.5)
    merged = merge(vectors, MergeRecipe(rule))
    expected = merge(vectors, MergeRecipe({"name": "ties", "density": 0.5, "reduce": "sum"}, scale=0.4))
    for name in vectors.names:
        torch.testing.assert_close(merged[name], expected[name])


def test_wrong_coefficients_are_named() -> None:
    with pytest.raises(TypeError, match="coefficients must map"):
        AdaMerging(coefficients=[0.3])
    with pytest.raises(TypeError, match=r"coefficients\['\*'\]"):
        AdaMerging(coefficients={"*": ["x"]})
    with pytest.raises(ValueError, match="expected one for each of 2 tasks"):
        merge(make_vectors(), MergeRecipe(AdaMerging(coefficients={"*": [0.3]})))

"""Fisher merging against the reference outputs, a loop and its limits."""

import pytest
import torch
from _helpers.golden import golden_output, golden_statistics, golden_vectors

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.rules.fisher import Fisher


def test_matches_the_reference() -> None:
    statistics = golden_statistics("inputs_fisher")
    merged = merge(golden_vectors("main"), MergeRecipe(Fisher(normalize=False)), statistics=statistics)
    for name, expected in golden_output("fisher.fb_norm0").items():
        torch.testing.assert_close(merged[name], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalize", [False, True])
def test_equals_a_loop_over_single_weights(normalize: bool) -> None:
    torch.manual_seed(0)
    names, tasks = ["a", "b"], ["x", "y", "z"]
    weights = {task: {name: torch.randn(4) for name in names} for task in tasks}
    fisher = {task: {name: torch.rand(4) * 10**index for name in names} for index, task in enumerate(tasks)}
    vectors = TaskVectors.open({name: torch.zeros(4) for name in names}, weights)
    merged = merge(vectors, MergeRecipe(Fisher(normalize=normalize, floor=0.01)), statistics=fisher)
    for name in names:
        for i in range(4):
            top = bottom = 0.0
            for task in tasks:
                norm = sum(float(value) ** 2 for tensor in fisher[task].values() for value in tensor) ** 0.5
                weight = (float(fisher[task][name][i]) + 0.01) / (norm if normalize else 1)
                top += weight * float(weights[task][name][i])
                bottom += weight
            assert merged[name][i].item() == pytest.approx(top / bottom, abs=1e-6)


def test_equal_information_gives_the_average_and_so_do_tensors_without_any() -> None:
    vectors = golden_vectors("edge")
    names = vectors.names[:1]
    ones = {task: {name: torch.ones(vectors.headers[name].shape) for name in names} for task in vectors.tasks}
    merged = merge(vectors, MergeRecipe("fisher"), statistics=ones)
    average = merge(vectors, MergeRecipe("simple_average"))
    for name in vectors.names:
        torch.testing.assert_close(merged[name], average[name])


def test_a_task_without_information_leaves_the_others_finite() -> None:
    vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}, "b": {"w": -torch.ones(2)}})
    merged = merge(vectors, MergeRecipe("fisher"), statistics={"a": {"w": torch.zeros(2)}, "b": {"w": torch.ones(2)}})
    torch.testing.assert_close(merged["w"], -torch.ones(2), atol=1e-3, rtol=0)


def test_missing_statistics_are_named() -> None:
    vectors = golden_vectors("edge")
    with pytest.raises(ValueError, match="'fisher' needs statistics"):
        merge(vectors, MergeRecipe("fisher"))
    with pytest.raises(ValueError, match="no entry for task 'task0'"):
        merge(vectors, MergeRecipe("fisher"), statistics={})

"""RegMean against the reference outputs, the regression it solves and its limits."""

import pytest
import torch
from _helpers.golden import golden_output, golden_statistics, golden_vectors

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.rules.regmean import RegMean


def test_matches_the_reference() -> None:
    merged = merge(golden_vectors("main"), MergeRecipe("regmean"), statistics=golden_statistics("inputs_gram"))
    for name, expected in golden_output("regmean.fb_0.9").items():
        torch.testing.assert_close(merged[name], expected, atol=1e-5, rtol=0)


def test_minimises_the_squared_distance_of_outputs() -> None:
    torch.manual_seed(0)
    inputs = {task: torch.randn(50, 3) @ torch.randn(3, 3) for task in "ab"}
    weights = {task: {"w": torch.randn(2, 3)} for task in "ab"}
    vectors = TaskVectors.open({"w": torch.randn(2, 3)}, weights)
    gram = {task: {"w": x.T @ x / len(x)} for task, x in inputs.items()}
    merged = merge(vectors, MergeRecipe(RegMean(off_diagonal=1.0)), statistics=gram)["w"]

    # The same problem as an ordinary least-squares fit to the outputs of both models on their own data.
    rows = torch.cat([inputs[task] for task in "ab"])
    outputs = torch.cat([inputs[task] @ weights[task]["w"].T for task in "ab"])
    torch.testing.assert_close(merged.T, torch.linalg.lstsq(rows, outputs).solution, atol=1e-4, rtol=1e-4)


def test_without_off_diagonal_it_weights_each_input_by_its_energy() -> None:
    vectors = TaskVectors.open(
        {"w": torch.zeros(1, 2)}, {"a": {"w": torch.tensor([[1.0, 1.0]])}, "b": {"w": torch.tensor([[-1.0, -1.0]])}}
    )
    gram = {"a": {"w": torch.tensor([[3.0, 9.0], [9.0, 1.0]])}, "b": {"w": torch.tensor([[1.0, 9.0], [9.0, 1.0]])}}
    merged = merge(vectors, MergeRecipe(RegMean(off_diagonal=0.0)), statistics=gram)
    torch.testing.assert_close(merged["w"], torch.tensor([[0.5, 0.0]]))


def test_a_singular_sum_stays_finite() -> None:
    vectors = TaskVectors.open({"w": torch.zeros(1, 2)}, {"a": {"w": torch.ones(1, 2)}, "b": {"w": torch.ones(1, 2)}})
    for gram in (torch.zeros(2, 2), torch.ones(2, 2)):
        statistics = {task: {"w": gram} for task in "ab"}
        merged = merge(vectors, MergeRecipe(RegMean(off_diagonal=1.0)), statistics=statistics)
        assert torch.isfinite(merged["w"]).all()


@pytest.mark.parametrize("off_diagonal", [-0.1, 1.1])
def test_off_diagonal_outside_its_range_is_refused(off_diagonal: float) -> None:
    with pytest.raises(ValueError, match="off_diagonal"):
        RegMean(off_diagonal=off_diagonal)

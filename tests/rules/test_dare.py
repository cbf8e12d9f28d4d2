import pytest
import torch
from _helpers.golden import golden_item, golden_output, golden_vectors, largest_error, use_stored_draws
from _helpers.small_models import merged_row, one_tensor

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.functional import random_keep
from lwptv_lightning.rules.dare import DARE


def test_equals_the_reference_with_its_draws(monkeypatch):
    use_stored_draws(monkeypatch)
    dropped = golden_item("dare_linear.fb")["params"]["p"]
    result = merge(golden_vectors("main"), MergeRecipe(rule=DARE(density=1 - dropped), scale=0.3))
    assert largest_error(result, golden_output("dare_linear.fb")) < 1e-6


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_drops_and_rescales_each_element(density):
    rows = [[1.0, -2.0, 3.0, 0.0, 5.0, 6.0], [0.5, 0.25, -1.0, 2.0, 0.0, 4.0]]
    keep = random_keep(6, density, 7, ("task0", "task1"), "w").tolist()
    expected = [sum(rows[t][i] / density for t in range(2) if keep[t][i]) for i in range(6)]
    assert merged_row(rows, DARE(density=density, seed=7), one_tensor) == pytest.approx(expected)


def test_the_share_kept_and_the_mean_are_as_announced():
    rule = DARE(density=0.3)
    kept = torch.tensor(merged_row([[1.0] * 20000], rule, one_tensor))
    # Four standard deviations of 20000 draws.
    assert abs((kept > 0).float().mean() - 0.3) < 4 * (0.3 * 0.7 / 20000) ** 0.5
    assert abs(kept.mean() - 1) < 4 * (0.7 / 0.3 / 20000) ** 0.5


def test_draws_differ_by_seed_task_and_tensor_and_repeat_otherwise():
    draw = random_keep(64, 0.5, 0, ["a"], "w")
    assert torch.equal(draw, random_keep(64, 0.5, 0, ["a"], "w"))
    for seed, task, name in [(1, "a", "w"), (0, "b", "w"), (0, "a", "v"), (0, "w", "a")]:
        assert not torch.equal(draw, random_keep(64, 0.5, seed, [task], name))


def test_the_order_of_tensors_does_not_matter():
    row = [1.0] * 16
    forwards = merge_of({"a": torch.tensor(row), "b": torch.tensor(row)})
    backwards = merge_of({"b": torch.tensor(row), "a": torch.tensor(row)})
    assert all(torch.equal(forwards[name], backwards[name]) for name in "ab")


def test_a_density_of_one_is_task_arithmetic():
    assert merged_row([[1.0, -2.0], [3.0, 0.5]], DARE(density=1)) == [4.0, -1.5]


@pytest.mark.parametrize("arguments", [{"density": 0}, {"density": 1.1}, {"seed": -1}])
def test_refuses_values_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DARE(**arguments)


def merge_of(task):
    from lwptv_lightning import TaskVectors

    base = {name: torch.zeros_like(tensor) for name, tensor in task.items()}
    return merge(TaskVectors.open(base, {"t": task}), MergeRecipe(rule="dare"))

import pytest
import torch
from _helpers.golden import golden_output, golden_vectors
from _helpers.small_models import merged_row, one_tensor, quick, reduced, sign, task_rows
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.functional import magnitude_probabilities, random_keep
from lwptv_lightning.rules import MergeContext
from lwptv_lightning.rules.della import DELLA


def test_equals_the_reference_with_its_draws(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    vectors = golden_vectors("main")

    def draw_in_order(count, probability, seed, tasks, name, start, like):
        # The reference was run on matrices alone, tensor after tensor and in each task after task.
        if len(vectors.headers[name].shape) != 2:
            return torch.zeros(len(tasks), count)
        drawn = torch.stack([torch.rand(vectors.headers[name].shape, generator=generator).flatten() for _ in tasks])
        return (drawn < probability).float()

    monkeypatch.setattr("lwptv_lightning.functional.trims.random_keep", draw_in_order)
    result = merge(vectors, MergeRecipe(rule="della"))
    for name, expected in golden_output("della.official_2d").items():
        assert (result[name] - expected).abs().max() < 1e-6, name


def loop_probabilities(row, density, epsilon):
    if len(row) == 1:
        return [density]
    ascending = sorted(range(len(row)), key=lambda index: (abs(row[index]), index))
    return [density - epsilon + ascending.index(index) / (len(row) - 1) * 2 * epsilon for index in range(len(row))]


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4), (3, 1), (4, 2, 3), (2, 1, 1, 1), (2, 3, 2, 2)])
def test_probabilities_follow_the_ranks_inside_each_row(shape):
    tau = torch.randn((3, *shape), generator=torch.Generator().manual_seed(0)).mul(2).round()
    rows = tau.reshape(-1, 1) if len(shape) == 0 else tau.reshape(3 * (shape[0] if len(shape) > 1 else 1), -1)
    expected = torch.tensor([loop_probabilities(row, 0.5, 0.2) for row in rows.tolist()]).reshape(tau.shape)
    assert torch.allclose(magnitude_probabilities(tau, 0.5, 0.2), expected, atol=1e-6)


@quick
@given(task_rows(), st.sampled_from([(0.5, 0.15), (0.3, 0.0), (0.7, 0.29)]), st.integers(0, 2))
def test_drops_rescales_elects_and_averages(rows, window, seed):
    density, epsilon = window
    left = []
    for task, row in enumerate(rows):
        chances = loop_probabilities(row, density, epsilon)
        keep = random_keep(len(row), torch.tensor([chances]), seed, [f"task{task}"], "w")[0].tolist()
        left.append([v / p if k else 0.0 for v, p, k in zip(row, chances, keep, strict=True)])
    columns = torch.tensor(left).T
    # The sum decides the vote; what rounds to other than zero where it is zero would hide an error.
    expected = [reduced(column, sign(float(sum(column))) or 1, "mean") for column in columns.tolist()]
    result = merged_row(rows, DELLA(density=density, epsilon=epsilon, seed=seed), one_tensor)
    clear = [
        abs(float(total)) > 1e-5 or not column.any() for total, column in zip(columns.sum(1), columns, strict=True)
    ]
    for ours, theirs, decided in zip(result, expected, clear, strict=True):
        assert not decided or ours == pytest.approx(theirs, abs=1e-5)


def test_a_tied_vote_is_positive():
    rule = DELLA(density=0.999, epsilon=0)
    tau = torch.tensor([[1.0], [-1.0]])
    merged = rule.combine(tau, MergeContext("w", ("a", "b")))
    assert merged.item() == pytest.approx(1 / 0.999)


def test_large_elements_stay_more_often():
    tau = torch.arange(1.0, 1001.0).repeat(1, 1)
    kept = torch.zeros(1000)
    for seed in range(200):
        kept += DELLA(seed=seed).combine(tau.clone(), MergeContext("w", ("a",))) > 0
    # Four standard deviations of 200 * 500 draws; the means of the halves are 0.425 and 0.575.
    for half, mean in ((kept[:500], 0.425), (kept[500:], 0.575)):
        assert abs(half.mean() / 200 - mean) < 4 * (0.25 / 1e5) ** 0.5


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.15, 0.15), (0.9, 0.1), (0.95, 0.15)])
def test_refuses_probabilities_out_of_range(density, epsilon):
    with pytest.raises(ValueError, match="epsilon must leave density"):
        DELLA(density=density, epsilon=epsilon)


@pytest.mark.parametrize("arguments", [{"density": 0}, {"density": 1}, {"epsilon": -0.1}, {"seed": -1}])
def test_refuses_values_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DELLA(**arguments)

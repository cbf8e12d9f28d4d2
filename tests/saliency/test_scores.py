import math

import pytest
import torch

from lwptv_lightning import TaskVectors, collect_statistics, layers_from_names, saliency_score, score_layers
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.saliency import SCORES, describe_scores


def norm(values):
    return math.sqrt(sum(value * value for value in values))


def mean_of(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def cosine(left, right):
    return sum(x * y for x, y in zip(left, right, strict=True)) / (norm(left) * norm(right))


# Each takes all rows of a layer's task vectors, the row to score, and the layer of the base.
FORMULAS = {
    "mean_abs": lambda rows, tau, base: sum(map(abs, tau)) / len(tau),
    "rms": lambda rows, tau, base: norm(tau) / math.sqrt(len(tau)),
    "l2": lambda rows, tau, base: norm(tau),
    "relative_l2": lambda rows, tau, base: norm(tau) / norm(base),
    "deviation": lambda rows, tau, base: (
        norm(x - m for x, m in zip(tau, mean_of(rows), strict=True)) / math.sqrt(len(tau))
    ),
    "uniqueness": lambda rows, tau, base: 1 - cosine(tau, mean_of(rows)),
    "conflict": lambda rows, tau, base: sum(x * m < 0 for x, m in zip(tau, mean_of(rows), strict=True)) / len(tau),
}


@pytest.fixture
def stats(vectors):
    return collect_statistics(vectors, layers_from_names(vectors.names))


@pytest.mark.parametrize("score", [name for name in SCORES if name != "random"])
def test_score_equals_its_formula(score, vectors, stats):
    table = score_layers(stats, score)
    assert table.values.shape == (len(vectors.tasks), len(stats.layers))
    assert table.layers == stats.layers.names
    for index, layer in enumerate(stats.layers):
        base = [value for name in layer.tensors for value in vectors.base(name).double().flatten().tolist()]
        rows = torch.cat([vectors.stack(name).reshape(3, -1) for name in layer.tensors], dim=1).tolist()
        expected = [FORMULAS[score](rows, row, base) for row in rows]
        assert table.values[:, index].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_minus_sign_reverses(stats):
    assert torch.equal(score_layers(stats, "-mean_abs").values, -score_layers(stats, "mean_abs").values)


def test_random_depends_on_the_seed_alone(stats):
    first, again, other = (score_layers(stats, "random", seed=seed).values for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.unique().numel() == first.numel()
    assert 0 <= first.min() <= first.max() < 1


@pytest.mark.parametrize(("given", "hint"), [("mean_ab", "mean_abs"), ("-mean_ab", "-mean_abs")])
def test_unknown_score_suggests_the_nearest(given, hint, stats):
    with pytest.raises(UnknownNameError, match=f"unknown saliency score '{given}'. Did you mean '{hint}'"):
        score_layers(stats, given)


def statistics_of(base, *tasks):
    vectors = TaskVectors.open(base, {str(index): task for index, task in enumerate(tasks)})
    return collect_statistics(vectors, layers_from_names(vectors.names, "tensor"))


def test_scores_of_a_zero_layer_are_numbers():
    stats = statistics_of({"a": torch.zeros(2), "b": torch.zeros(2)}, {"a": torch.ones(2), "b": torch.zeros(2)})
    for score in SCORES:
        assert not score_layers(stats, score).values.isnan().any()
    assert score_layers(stats, "relative_l2").values.tolist() == [[math.inf, 0.0]]
    assert score_layers(stats, "uniqueness").values.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("score", SCORES)
def test_scores_of_a_layer_without_elements_are_numbers(score):
    base = {"w": torch.ones(2), "empty": torch.zeros(0, 3)}
    vectors = TaskVectors.open(base, {task: {"w": torch.zeros(2), "empty": base["empty"]} for task in "ab"})
    stats = collect_statistics(vectors, layers_from_names(vectors.names, "tensor"))
    assert score_layers(stats, score).values.isfinite().all()


def test_single_task_does_not_deviate(base_state, task_states):
    assert not score_layers(statistics_of(base_state, task_states["a"]), "deviation").values.any()


@pytest.fixture
def register():
    """``register(function)`` for the time of a test."""
    names = []

    def add(function):
        names.append(function.__name__)
        return saliency_score(function)

    yield add
    for name in names:
        SCORES._records.pop(name)


def test_a_new_score_is_one_function(register, stats):
    @register
    def largest_layer(stats, seed):
        """Number of elements."""
        return stats.numel.expand(len(stats.tasks), -1)

    assert torch.equal(score_layers(stats, "largest_layer").values[1], stats.numel)
    assert describe_scores(["largest_layer"]) == {"largest_layer": "Number of elements."}


def test_score_that_is_nan_or_of_another_shape(register, stats):
    @register
    def broken(stats, seed):
        return stats.l1 * math.nan

    @register
    def transposed(stats, seed):
        return stats.l1.T

    with pytest.raises(ValueError, match="'broken' is NaN"):
        score_layers(stats, "broken")
    with pytest.raises(ValueError, match=r"'transposed' returned shape \(4, 3\), expected \(T, L\) = \(3, 4\)"):
        score_layers(stats, "transposed")

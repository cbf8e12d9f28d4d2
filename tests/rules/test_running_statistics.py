"""Running statistics of batch normalisation are averaged, whatever the rule."""

import pytest
import torch

from lwptv_lightning import LayerMask, MergeRecipe, TaskVectors, layers_from_names, merge
from lwptv_lightning.rules import RULES

SHAPES = {"fc.weight": (4, 3), "bn.weight": (3,), "bn.bias": (3,), "bn.running_mean": (3,), "bn.running_var": (3,)}


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(0)
    states = [{name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()} for _ in range(3)]
    return TaskVectors.open(states[0], dict(zip("ab", states[1:], strict=True)))


def mean_of_experts(vectors, name):
    return torch.stack([vectors.expert(task, name) for task in vectors.tasks]).mean(0)


@pytest.mark.parametrize("rule", [name for name, rule in sorted(RULES.items()) if not rule.needs])
@pytest.mark.parametrize(
    "options", [{}, {"scale": -2.0}, {"prune_on": "parts"}, {"layer_scaling": {"bn": 9.0}}], ids=str
)
def test_they_are_the_mean_of_the_experts_whatever_rule_and_scale(rule, options, vectors):
    if options.get("prune_on") == "parts" and not RULES[rule].has_parts():
        pytest.skip("the rule has no parts")
    merged = merge(vectors, MergeRecipe(rule, **options))
    for name in ("bn.running_mean", "bn.running_var"):
        torch.testing.assert_close(merged[name], mean_of_experts(vectors, name))


def test_a_pruned_task_counts_with_the_bases(vectors):
    layers = layers_from_names(vectors.names)
    mask = LayerMask(vectors.tasks, layers.names, torch.tensor([[True, True], [True, False]]))
    merged = merge(vectors, MergeRecipe("ties"), layers, mask=mask)
    expected = (vectors.expert("a", "bn.running_var") + vectors.base("bn.running_var")) / 2
    torch.testing.assert_close(merged["bn.running_var"], expected)
    assert torch.equal(merge(vectors, MergeRecipe(prune=("bn",)))["bn.running_var"], vectors.base("bn.running_var"))


def test_a_variance_stays_at_least_zero():
    base = {"bn.running_mean": torch.zeros(1), "bn.running_var": torch.tensor([1e8])}
    zero = {"bn.running_mean": torch.zeros(1), "bn.running_var": torch.tensor([0.0])}
    tiny = {"bn.running_mean": torch.zeros(1), "bn.running_var": torch.tensor([1e-7])}
    merged = merge(TaskVectors.open(base, {"a": zero, "b": tiny, "c": tiny}), MergeRecipe(scale=5.0))
    assert merged["bn.running_var"] >= 0

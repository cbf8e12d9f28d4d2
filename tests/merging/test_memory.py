import pytest
import torch

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.merging import MemoryLimitError


@pytest.fixture
def wide():
    """Two tasks of a tensor of 4 MB beside a small one."""
    base = {"small": torch.zeros(3), "wide": torch.zeros(1024, 1024)}
    tasks = {task: {name: tensor + seed for name, tensor in base.items()} for seed, task in enumerate("ab", start=1)}
    return TaskVectors.open(base, tasks)


@pytest.mark.parametrize("rule", ["task_arithmetic", "ties", "breadcrumbs", "iso_c"])
def test_a_limit_that_suffices_changes_nothing(rule, wide):
    recipe = MergeRecipe(rule, ratio=0.5)
    limited, free = merge(wide, recipe, max_memory="1GB"), merge(wide, recipe)
    assert all(torch.equal(limited[name], tensor) for name, tensor in free.items())


@pytest.mark.parametrize(("rule", "limit"), [("iso_c", "100MB"), ("breadcrumbs", "60MB"), ("task_arithmetic", "1MB")])
def test_a_limit_that_does_not_suffice_is_told_before_a_weight_is_read(rule, limit, wide, monkeypatch):
    monkeypatch.setattr(TaskVectors, "open_stack", lambda *given: pytest.fail("a weight was read"))
    told = rf"merging 2 tasks by '{rule}' takes up to .* MB .*'wide' of shape \(1024"
    with pytest.raises(MemoryLimitError, match=told):
        merge(wide, MergeRecipe(rule, ratio=0.5), max_memory=limit)


def test_a_layer_whose_elements_are_ranked_together_counts_as_a_whole(wide):
    recipe = MergeRecipe(elements={"ratio": 0.5}, granularity="block")
    merge(wide, recipe, max_memory="200MB")
    with pytest.raises(MemoryLimitError, match="takes up to"):
        merge(wide, recipe, max_memory="40MB")

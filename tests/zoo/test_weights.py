"""The shipped weights load strictly, keep to their budgets, and show what the zoo exists to show."""

import functools
import statistics

import pytest
import torch
from safetensors.torch import load_file

from lwptv_lightning.zoo import ID_SETS, OOD_SETS, base_path, create_model, dataset, expert_paths, heads

SAMPLES = 300  # one standard error is below 3 points per set, 1.3 over five sets


@functools.lru_cache
def accuracies(path):
    """Accuracy in percent of one checkpoint on every set."""
    model = create_model().eval()
    model.load_state_dict(load_file(path), strict=True)
    head_of = heads()
    result = {}
    with torch.inference_mode():
        for name in ID_SETS + OOD_SETS:
            data = dataset(name, "test", SAMPLES)
            correct = head_of[name](model(data.images)).argmax(1) == data.labels
            result[name] = 100 * correct.float().mean().item()
    return result


def ood_average(path):
    return statistics.mean(accuracies(path)[name] for name in OOD_SETS)


def test_base_works_out_of_domain():
    assert ood_average(base_path()) >= 75


@pytest.mark.parametrize("task", ID_SETS)
def test_expert_beats_the_base_on_its_own_task(task):
    assert accuracies(expert_paths()[task])[task] - accuracies(base_path())[task] >= 15


def test_experts_lose_out_of_domain():
    assert statistics.mean(map(ood_average, expert_paths().values())) <= ood_average(base_path()) - 5

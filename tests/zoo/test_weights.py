"""The shipped weights load strictly, keep to their budgets, and show what the zoo exists to show."""

import functools
import statistics

import pytest
import torch
from safetensors.torch import load_file

from lwptv_lightning.zoo import (
    FAR_SETS,
    ID_SETS,
    NEAR_SETS,
    OOD_SETS,
    base_path,
    create_model,
    dataset,
    expert_paths,
    heads,
)

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


def average(path, sets):
    return statistics.mean(accuracies(path)[name] for name in sets)


def test_base_works_far_out_of_domain_and_less_so_in_the_styles_of_the_tasks():
    assert average(base_path(), FAR_SETS) >= 75
    assert 50 <= average(base_path(), NEAR_SETS) <= 65


@pytest.mark.parametrize("task", ID_SETS)
def test_expert_beats_the_base_on_its_own_task(task):
    assert accuracies(expert_paths()[task])[task] - accuracies(base_path())[task] >= 15


def test_experts_lose_far_out_of_domain():
    experts = statistics.mean(average(path, FAR_SETS) for path in expert_paths().values())
    assert experts <= average(base_path(), FAR_SETS) - 5


def test_an_expert_gains_on_unseen_classes_in_its_own_style():
    in_style = {task.partition("_")[2]: accuracies(path) for task, path in expert_paths().items()}
    gains = [in_style[name.partition("_")[2]][name] - accuracies(base_path())[name] for name in NEAR_SETS]
    assert statistics.mean(gains) >= 5

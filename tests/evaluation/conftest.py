"""A small model and two task vectors, for tests that have none of their own."""

import pytest
import torch
from torch import nn

from lwptv_lightning import TaskVectors


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.fixture
def vectors(model, fine_tuned):
    return TaskVectors.open(model, {task: fine_tuned(model.state_dict(), seed, 0.5) for seed, task in enumerate("ab")})

import pytest
import torch
from _helpers.gated import gated_module
from lightning.pytorch import Trainer
from torchmetrics import MeanSquaredError

from lwptv_lightning.learning.samples import Steps, require_own_loaders, require_whole_models

OWN = {f"id/{task}": [torch.zeros(2, 1, 4, 4)] for task in "abc"}


def test_loaders_come_in_the_tasks_order():
    assert list(require_own_loaders(gated_module(), dict(reversed(OWN.items())))) == ["id/a", "id/b", "id/c"]


def test_a_task_has_one_loader_in_a_group_or_in_none():
    given = {"id/day/c": [], "id/b": [], "id/night/a": []}
    assert list(require_own_loaders(gated_module(), given)) == ["id/night/a", "id/b", "id/day/c"]
    with pytest.raises(ValueError, match="task 'c' has the loaders 'id/day/c' and 'id/night/c'; give one a task"):
        require_own_loaders(gated_module(), {**given, "id/night/c": []})


def test_what_is_not_of_classes_is_refused():
    with pytest.raises(ValueError, match="LayerGates"):
        require_own_loaders(gated_module(metric=MeanSquaredError()), OWN)


def test_a_missing_loader_is_named_with_the_nearest():
    given = {"id/a": [], "id/c": []}
    with pytest.raises(ValueError, match="task 'b' has no loader 'id/b'"):
        require_own_loaders(gated_module(), given)


def test_sharded_models_are_refused():
    trainer = Trainer(accelerator="cpu", strategy="auto", logger=False, enable_checkpointing=False)
    require_whole_models(trainer)
    from lightning.pytorch.strategies import ModelParallelStrategy

    trainer.strategy.__class__ = ModelParallelStrategy
    with pytest.raises(ValueError, match="ModelParallelStrategy shards it; use strategy='ddp'"):
        require_whole_models(trainer)


def test_steps_may_be_resumed():
    steps = Steps(2)
    steps.load_state_dict(steps.state_dict())
    assert (list(steps), len(steps)) == ([0, 1], 2)

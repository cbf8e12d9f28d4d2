import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning.engine import ALONE
from lwptv_lightning.evaluation import (
    batch_limit,
    callbacks_of,
    loaders_of,
    merging_together,
    on_rank_zero,
    ranks_of,
    shared_loaders,
)
from lwptv_lightning.evaluation import lightning as ours


class Logging(LightningModule):
    """Logs under the loaders' names, as `MergeModule` does."""

    def __init__(self, forgets=True):
        super().__init__()
        self.forgets = forgets

    def on_validation_start(self):
        if self.forgets:
            ours.forget_logged_(self)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen = {stage: loaders_of(self.trainer, stage) for stage in ("validate", "test", "predict", "fit")}
        self.log(tuple(self.seen["validate"])[dataloader_idx], batch[0].mean(), add_dataloader_idx=False)


@pytest.fixture
def loaders():
    return {name: DataLoader(TensorDataset(torch.arange(3.0))) for name in ("id/a", "ood/b")}


def test_a_name_may_be_another_loaders_once_the_first_run_is_forgotten(loaders, make_trainer):
    swapped = dict(reversed(loaders.items()))
    for forgets in (True, False):
        module, trainer = Logging(forgets), make_trainer()
        trainer.validate(module, loaders, verbose=False)
        assert module.seen == {"validate": loaders, "test": None, "predict": None, "fit": None}
        if forgets:
            assert [*trainer.validate(module, swapped, verbose=False)[0]] == ["ood/b"]
        else:
            with pytest.raises(MisconfigurationException, match="You called `self.log"):
                trainer.validate(module, swapped, verbose=False)


def test_what_is_asked_of_a_trainer(loaders, make_trainer):
    module, trainer = Logging(), make_trainer(fast_dev_run=2)
    assert ours.trainer_of(module) is None
    assert ranks_of(trainer) is ALONE
    assert batch_limit(trainer) == 2
    assert batch_limit(make_trainer()) is None
    assert callbacks_of(trainer) is trainer.callbacks
    shared = shared_loaders(make_trainer(), loaders)
    assert list(shared) == list(loaders)
    with merging_together(trainer) as ranks:
        assert ranks is ALONE


def test_the_first_process_acts_and_its_error_is_everyones(make_trainer):
    assert on_rank_zero(make_trainer(), lambda: 3) == 3
    with pytest.raises(KeyError, match="gone"):
        on_rank_zero(make_trainer(), lambda: {}["gone"])


def test_fewer_samples_than_processes_cannot_be_predicted(loaders):
    three, four = (ours.Replicas(ALONE, 0, size) for size in (3, 4))
    for given in (loaders, list(loaders.values()), loaders["id/a"]):
        ours.require_samples_for_all(given, three)
        ours.require_samples_for_all(given, ours.Replicas())
        with pytest.raises(ValueError, match="loader .* has 3 samples, fewer than the 4 processes that predict"):
            ours.require_samples_for_all(given, four)
    ours.require_samples_for_all([torch.zeros(2, 3)], four)


class LoggingInTraining(LightningModule):
    """Logs figures of all processes, and one of its own."""

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        ours.log_figures_(self, {"id/a": 0.5, "id/avg": 0.25})
        self.log("own", 0.5)


def test_lightning_gives_no_hint_to_reduce_what_is_reduced(make_trainer, loaders, monkeypatch):
    monkeypatch.setattr(
        "lightning.pytorch.trainer.connectors.logger_connector.result._distributed_is_initialized", lambda: True
    )
    with pytest.warns(UserWarning, match="sync_dist=True") as told:
        make_trainer().validate(LoggingInTraining(), loaders["id/a"], verbose=False)
    hints = [str(each.message) for each in told if "sync_dist" in str(each.message)]
    assert [hint.split("'")[1] for hint in hints] == ["own"]

"""A trainer that runs for a command."""

import logging
from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from lwptv_lightning.cli.running import running, without_banners
from lwptv_lightning.registry import watching


class Module(LightningModule):
    """Prints, as modules do."""

    def __init__(self, fails=False):
        super().__init__()
        self.layer, self.fails = torch.nn.Linear(1, 1), fails

    def validation_step(self, batch, batch_idx):
        print("seen")  # noqa: T201
        if self.fails and batch_idx:
            raise RuntimeError("broken")

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def told():
    """What whoever watches is told."""
    told = []

    @contextmanager
    def watcher(what, total):
        told.append((what, total))
        try:
            yield lambda steps=1, what=None: told.append(steps)
        finally:
            told.append("end")

    with watching(watcher):
        yield told


@pytest.fixture
def trainer(tmp_path):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", max_epochs=1, limit_train_batches=2, default_root_dir=tmp_path, **quiet)


LOADER = torch.utils.data.DataLoader(torch.zeros(3, 1), num_workers=0)


@pytest.mark.filterwarnings("ignore")
def test_batches_are_told_and_nothing_is_on_the_standard_output(told, trainer, capsys):
    before = list(trainer.callbacks)
    with running(trainer):
        trainer.validate(Module(), LOADER, verbose=False)
    assert told == [("Evaluating", 3), 1, 1, 1, "end"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("seen") == 3
    assert trainer.callbacks == before
    told.clear()
    with running(trainer):
        trainer.fit(Module(), LOADER)
    assert told == [("Learning", 2), 1, 1, "end"]


@pytest.mark.filterwarnings("ignore")
def test_an_error_ends_what_is_shown(told, trainer):
    with pytest.raises(RuntimeError, match="broken"), running(trainer):
        trainer.validate(Module(fails=True), LOADER, verbose=False)
    assert told[-1] == "end"


@pytest.mark.filterwarnings("ignore")
def test_a_bar_of_the_users_own_stays_and_none_stays_none(told, trainer):
    class Own(TQDMProgressBar):
        """Of the user's own."""

    for callbacks in ([Own()], []):
        trainer.callbacks[:] = callbacks
        with running(trainer):
            assert trainer.callbacks == callbacks
    assert told == []


def test_banners_are_left_out_and_words_of_others_stay(caplog):
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def record(path, level):
        logger.handle(logging.LogRecord(logger.name, level, path, 1, path, (), None))

    with caplog.at_level(logging.INFO, logger="lightning.pytorch"), without_banners():
        logger.addHandler(caplog.handler)
        try:
            record("/x/lightning/pytorch/trainer/setup.py", logging.INFO)
            record("/x/lightning/pytorch/trainer/setup.py", logging.WARNING)
            record("/x/lwptv_lightning/evaluation/averages.py", logging.INFO)
        finally:
            logger.removeHandler(caplog.handler)
    assert {(each.levelno, each.pathname.split("/")[2]) for each in caplog.records} == {
        (logging.WARNING, "lightning"),
        (logging.INFO, "lwptv_lightning"),
    }

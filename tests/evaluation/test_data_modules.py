import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning.evaluation import EvaluationSuite, as_suite
from lwptv_lightning.registry import ConfigurationError

LOADER = DataLoader(TensorDataset(torch.zeros(2, 3), torch.zeros(2).long()))


class Own(LightningDataModule):
    def __init__(self, loaders):
        super().__init__()
        self.given = loaders
        self.calls = []

    def prepare_data(self):
        self.calls.append("prepare")

    def setup(self, stage):
        self.calls.append(stage)

    def val_dataloader(self):
        return self.given


class Transferring(Own):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


def test_named_loaders_are_a_suite():
    own = Own({"id/a": LOADER, "ood/far/b": LOADER, "validation/a": LOADER})
    suite = as_suite("data", own)
    assert own.calls == ["prepare", "validate"]
    assert (list(suite.loaders), list(suite.validation)) == (["id/a", "ood/far/b"], ["id/a"])
    assert as_suite("data", suite) is suite


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Own([LOADER]), "data: Own.val_dataloader returns a list, expected a dict of named loaders"),
        (Own(LOADER), "data: Own.val_dataloader returns a DataLoader, expected a dict of named loaders"),
        (Own({"a": LOADER}), "data: Own.val_dataloader: loader 'a' must be named"),
        (Own({"id/a": LOADER, "validation/b": LOADER}), "data: Own.val_dataloader: unknown ID set in validation: 'b'"),
        (Own({}), "data: Own.val_dataloader: "),
        (LightningDataModule(), "data: LightningDataModule has no val_dataloader, expected one that returns a dict"),
        (Transferring({"id/a": LOADER}), "data: Transferring.on_after_batch_transfer would not be called"),
    ],
)
def test_other_loaders_are_refused_with_what_is_expected(data, message):
    with pytest.raises(ConfigurationError, match=message):
        as_suite("data", data)


def test_a_suite_has_validation_sets_of_its_id_sets():
    suite = EvaluationSuite({"night/a": LOADER}, validation={"a": LOADER})
    assert list(suite.validation) == ["id/a"]
    with pytest.raises(ValueError, match="unknown ID set in validation: 'b'"):
        EvaluationSuite({"a": LOADER}, validation={"b": LOADER})
    with pytest.raises(TypeError, match="'validation/a' must be a data set or a loader"):
        EvaluationSuite({"a": LOADER}, validation={"a": 3})
    with pytest.raises(TypeError, match="validation must be a mapping"):
        EvaluationSuite({"a": LOADER}, validation=[LOADER])

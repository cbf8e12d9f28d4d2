import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import EvaluationSuite

DATA = TensorDataset(torch.zeros(5, 3), torch.zeros(5).long())


def test_suite_names_sets_and_loaders():
    own = DataLoader(DATA, batch_size=2)
    suite = EvaluationSuite(id={"a": DATA}, ood={"b": own}, batch_size=4)
    assert list(suite.loaders) == ["id/a", "ood/b"]
    assert suite.loaders["id/a"].batch_size == 4
    assert suite.loaders["ood/b"] is own
    assert suite.val_dataloader() is suite.test_dataloader() is suite.predict_dataloader() is suite.loaders


def test_suite_of_things_that_are_no_data():
    with pytest.raises(TypeError, match="'id/a' must be a data set or a loader, not list"):
        EvaluationSuite(id={"a": [1, 2]})
    with pytest.raises(ValueError, match="not an empty dict"):
        EvaluationSuite(id={})

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import EvaluationSuite
from lwptv_lightning.evaluation import require_loaders

DATA = TensorDataset(torch.zeros(5, 3), torch.zeros(5).long())


@pytest.mark.parametrize(
    ("loaders", "message"),
    [
        ([DataLoader(DATA)], r"must be a dict such as .*, not a list"),
        (DataLoader(DATA), "not a DataLoader"),
        (None, "not a NoneType"),
        ({}, "not an empty dict"),
        ({"svhn": DataLoader(DATA)}, "'svhn' must be named"),
        ({0: DataLoader(DATA)}, "'0' must be named"),
        ({"id/a": DataLoader(DATA, batch_size=2, drop_last=True)}, "'id/a' has drop_last=True"),
        ({"id/a": DataLoader(TensorDataset(torch.zeros(0)))}, "'id/a' has an empty data set"),
    ],
)
def test_loaders_that_cannot_be_evaluated(loaders, message):
    with pytest.raises(ValueError, match=message):
        require_loaders(loaders)


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
    with pytest.raises(TypeError, match="'ood/near' .*not dict. Sets of a group are named 'near/<name>'"):
        EvaluationSuite(id={"a": DATA}, ood={"near": {"b": DATA}})


def test_suite_of_sets_in_groups():
    suite = EvaluationSuite(id={"a": DATA, "night/a": DATA}, ood={"near/b": DATA, "far/b": DATA})
    assert list(suite.loaders) == ["id/a", "id/night/a", "ood/near/b", "ood/far/b"]
    assert list(EvaluationSuite.of(suite.loaders).loaders) == list(suite.loaders)
    with pytest.raises(ValueError, match="loader 'ood/near' is named as the group of 'ood/near/b'"):
        EvaluationSuite(id={"a": DATA}, ood={"near": DATA, "near/b": DATA})
    with pytest.raises(ValueError, match="not an empty dict"):
        EvaluationSuite(id={})


@pytest.mark.parametrize("name", ["ood/near/x", "id/x"])
def test_suite_puts_the_domains_before_its_names_itself(name):
    data = TensorDataset(torch.zeros(2, 3), torch.zeros(2))
    domain, _, rest = name.partition("/")
    with pytest.raises(ValueError, match=f"ood: '{name}' begins with a domain.*say '{rest}' among the {domain} sets"):
        EvaluationSuite(id={"a": data}, ood={name: data})

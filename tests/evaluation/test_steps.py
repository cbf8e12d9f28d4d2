import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, merge

RECIPE = MergeRecipe("task_arithmetic", scale=0.5)


def test_one_loader_gives_one_entry(model, vectors, make_trainer):
    results = make_trainer().validate(
        MergeModule(model, vectors),
        {"ood/x": DataLoader(TensorDataset(torch.randn(6, 6), torch.arange(6) % 4))},
        verbose=False,
    )
    assert [set(result) for result in results] == [{"ood/x", "ood/avg"}]


def test_predict_takes_loaders_of_inputs_alone(model, vectors, make_trainer):
    inputs = torch.randn(5, 6)
    predictions = make_trainer().predict(MergeModule(model, vectors, RECIPE), DataLoader(inputs, batch_size=5))
    oracle = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    oracle.load_state_dict(merge(vectors, RECIPE))
    torch.testing.assert_close(predictions[0], oracle(inputs).detach())


def test_batch_that_is_no_pair(model, vectors, make_trainer):
    with pytest.raises(TypeError, match=r"a batch must be \(inputs, targets\), not Tensor; override .*unpack"):
        make_trainer().validate(MergeModule(model, vectors), {"id/a": DataLoader(torch.zeros(3, 6))})

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning.evaluation import Replicas, share_loaders
from lwptv_lightning.search.outcomes import Outcomes

DATA = TensorDataset(torch.arange(7.0), torch.arange(7))


def outcomes(loader, replicas, rank=0):
    """Two models, of which one is right on even samples and one on the first three."""
    collected = Outcomes("id/a", loader)
    for batch_idx, (inputs, targets) in enumerate(loader):
        collected.add(batch_idx, [inputs, targets], torch.stack([inputs % 2 == 0, inputs < 3]))
    return collected.together(replicas)


def test_outcomes_are_in_the_order_of_the_data_set():
    order = [[6, 0], [3], [5, 1, 4, 2]]
    loader = share_loaders({"id/a": DataLoader(DATA, batch_sampler=order)}, Replicas())["id/a"]
    correct, prints = outcomes(loader, Replicas())
    assert correct.int().tolist() == [[1, 0, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0, 0]]
    plain = share_loaders({"id/a": DataLoader(DATA, 3)}, Replicas(), fixed=True)["id/a"]
    assert torch.equal(outcomes(plain, Replicas())[1], prints)


def test_without_places_they_are_in_the_order_of_the_loader():
    batches = [(torch.tensor([5.0, 2.0]), torch.tensor([5, 2])), (torch.tensor([4.0]), torch.tensor([4]))]
    loader = share_loaders({"id/a": batches}, Replicas())["id/a"]
    assert outcomes(loader, Replicas())[0].int().tolist() == [[0, 1, 1], [0, 1, 0]]


def test_processes_that_had_the_same_samples_count_once():
    class Twice(Replicas):
        def exchange(self, value):
            return [value, value]

    batches = [(torch.tensor([5.0, 2.0]), torch.tensor([5, 2]))]
    loader = share_loaders({"id/a": batches}, Replicas())["id/a"]
    with pytest.warns(UserWarning, match="'id/a' gives several processes the same samples"):
        correct, _ = outcomes(loader, Twice(size=2))
    assert correct.shape == (2, 2)

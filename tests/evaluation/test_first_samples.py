from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from lwptv_lightning.evaluation import Interface, Replicas, first_samples, inputs_of
from lwptv_lightning.evaluation.first_samples import joined

NUMBERS = TensorDataset(torch.arange(20.0), torch.zeros(20))
MODULE = SimpleNamespace(interface=Interface(), unpack=Interface().unpack)


def first(loader, count=6, **options):
    return inputs_of(MODULE, first_samples(MODULE, {"id/a": loader}, count, Replicas(), **options)["id/a"]).tolist()


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(20.0))


LOADERS = {
    "in order": DataLoader(NUMBERS, 4),
    "larger batches": DataLoader(NUMBERS, 50),
    "drop_last": DataLoader(NUMBERS, 7, drop_last=True),
    "workers": DataLoader(NUMBERS, 4, num_workers=1),
    "batches of its own": DataLoader(NUMBERS, batch_size=None),
    "a stream": DataLoader(Numbers(), 4),
    "a list": list(DataLoader(NUMBERS, 4)),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_the_first_samples_are_the_same_however_they_are_batched(kind):
    if kind == "batches of its own":
        pairs = TensorDataset(torch.arange(20.0).reshape(10, 2), torch.zeros(10, 2))
        assert first(DataLoader(pairs, batch_size=None)) == [0, 1, 2, 3, 4, 5]
        return
    assert first(LOADERS[kind]) == [0, 1, 2, 3, 4, 5]
    assert first(LOADERS[kind], 30)[-1] == (20 if kind == "drop_last" else 19) - (kind == "drop_last") * 0 or 13


def test_a_shuffled_loader_is_shuffled_by_the_seed_or_as_it_says_itself():
    torch.manual_seed(3)
    own = first(DataLoader(NUMBERS, 4, shuffle=True))
    assert own == first(DataLoader(NUMBERS, 7, shuffle=True)) != [0, 1, 2, 3, 4, 5]
    assert own != first(DataLoader(NUMBERS, 4, shuffle=True), seed=1)
    sampler = RandomSampler(NUMBERS, generator=torch.Generator().manual_seed(4))
    wanted = list(RandomSampler(NUMBERS, generator=torch.Generator().manual_seed(4)))[:6]
    assert first(DataLoader(NUMBERS, 4, sampler=sampler)) == wanted
    assert first(DataLoader(NUMBERS, 4, sampler=[9, 2, 2])) == [9, 2, 2]


def test_a_sampler_that_divides_among_processes_is_taken_as_it_is():
    sampler = DistributedSampler(NUMBERS, 1, 0, shuffle=False)
    assert first(DataLoader(NUMBERS, 4, sampler=sampler)) == [0, 1, 2, 3, 4, 5]


def test_nothing_to_read_is_named():
    with pytest.raises(ValueError, match="'id/a' gives no"):
        first([])
    with pytest.raises(ValueError, match="'id/a'.*length|'id/a' gives no"):
        first(DataLoader(TensorDataset(torch.zeros(0), torch.zeros(0))))


def test_batches_are_joined_whatever_they_are_made_of():
    batches = [{"x": torch.zeros(2, 3), "names": ["a", "b"], "scale": torch.tensor(2.0)} for _ in range(2)]
    found = joined("id/a", batches)
    assert found["x"].shape == (4, 3)
    assert (found["names"], found["scale"]) == (["a", "b", "a", "b"], torch.tensor(2.0))
    with pytest.raises(ValueError, match=r"'id/a'.*\(2, 3\) and \(2, 4\)"):
        joined("id/a", [(torch.zeros(2, 3), 0), (torch.zeros(2, 4), 0)])

"""The shares of several processes, made in one as each of them would draw it."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from lwptv_lightning.evaluation import Replicas, is_located, share_loaders, share_of


@pytest.fixture
def data():
    return TensorDataset(torch.arange(23.0), torch.zeros(23).long())


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(10**9))


@pytest.mark.parametrize("limit", [None, 1, 3, 0.5, 0.17, 0.99])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_the_batches_of_one_process(size, limit, data):
    """A limit that the trainer takes of a share is that of the whole."""

    class Alone(Replicas):
        def exchange(self, value):
            return [value] * size

    loaders = {"id/a": DataLoader(data, 4)}
    wanted = 6 if limit is None else limit if isinstance(limit, int) else int(6 * limit)
    dealt = {}
    for rank in range(size):
        shared = share_loaders(loaders, Alone(rank=rank, size=size), limit, fixed=True)["id/a"]
        taken = len(shared) if not isinstance(limit, float) else int(len(shared) * limit)
        for batch_idx, (inputs, _) in enumerate(shared):
            number = share_of(shared).number(batch_idx)
            if batch_idx < taken and number is not None:
                dealt[number] = inputs
        assert type(shared) is DataLoader
        assert shared is not loaders["id/a"]
    assert sorted(dealt) == list(range(wanted))
    for number, inputs in dealt.items():
        assert torch.equal(inputs, data.tensors[0][4 * number : 4 * number + 4])
    assert share_of(loaders["id/a"]) is None


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_a_distributed_sampler_deals_out_the_batches_of_one_process(length, replicas):
    data = TensorDataset(torch.arange(length))

    def loader(rank):
        return DataLoader(data, 2, sampler=DistributedSampler(data, replicas, rank, shuffle=False))

    class Together(Replicas):
        def exchange(self, value):
            (name,) = value
            drawn = type(value[name])
            return [{name: drawn.of(name, loader(rank), None)} for rank in range(replicas)]

    found = []
    for rank in range(replicas):
        shared = share_loaders({"id/a": loader(rank)}, Together(rank=rank, size=replicas), fixed=True)["id/a"]
        share = share_of(shared)
        for batch_idx, (samples,) in enumerate(shared):
            if (number := share.number(batch_idx)) is not None:
                assert share.start(number) == samples[0]
                assert share.positions(number) == samples.tolist()
                found.extend(samples.tolist())
    assert sorted(found) == list(range(length))


def test_a_loader_without_a_sampler_tells_its_last_batch_when_that_is_there():
    (loader,) = share_loaders({"id/a": [1, 2, 3]}, Replicas()).values()
    told = [(batch, loader.total) for batch in loader]
    assert told == [(1, None), (2, None), (3, 3)]
    assert not is_located(loader)
    endless = share_loaders({"id/a": DataLoader(Endless(), 4)}, Replicas())["id/a"]
    assert endless.batch_size == 4
    with pytest.raises(TypeError, match="nobody knows how many batches a DataLoader gives"):
        len(endless)


def test_processes_of_one_replica_have_one_value():
    class Both:
        def exchange(self, value):
            return [(0, "first"), (0, "its twin"), (1, "second"), (1, "its twin")]

    assert Replicas(Both(), 0, 2).exchange("mine") == ["first", "second"]

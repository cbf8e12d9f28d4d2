"""Whatever a loader's batches are made of, each sample that it gives is counted, and a sweep knows which it is."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from lwptv_lightning import MergeModule, TaskVectors
from lwptv_lightning.evaluation import require_loaders
from lwptv_lightning.search import sweep

SIZE = 23


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(SIZE, 6, generator=generator), torch.randint(4, (SIZE,), generator=generator))


@pytest.fixture
def module():
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    tuned = {
        task: {name: tensor + torch.randn_like(tensor) for name, tensor in model.state_dict().items()} for task in "ab"
    }
    return MergeModule(model, TaskVectors.open(model, tuned))


class Growing(BatchSampler):
    """Batches of 1, 2, 3 ... samples, whose number it does not know."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        rest, length = list(range(self.size)), 1
        while rest:
            yield rest[:length]
            rest, length = rest[length:], length + 1

    def __len__(self):
        raise NotImplementedError


class Claims(IterableDataset):
    """Says that it has more or fewer samples than it gives."""

    def __init__(self, data, length):
        self.data, self.length = data, length

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter([self.data[index] for index in range(len(self.data))])


class Batches(Dataset):
    def __init__(self, data):
        self.parts = list(zip(*(tensor.split([5, 1, 8, 9]) for tensor in data.tensors), strict=True))

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, index):
        return self.parts[index]


LOADERS = {
    "batches of unequal sizes": lambda data: DataLoader(data, batch_sampler=Growing(SIZE)),
    "indices in a list": lambda data: DataLoader(data, batch_sampler=[[22, *range(9)], list(range(9, 22))]),
    "ready batches": lambda data: DataLoader(Batches(data), batch_size=None),
    "ready batches, unwrapped": lambda data: DataLoader(Batches(data), collate_fn=lambda items: items[0]),
    "a list": lambda data: list(DataLoader(data, 4)),
    "a tuple": lambda data: tuple(DataLoader(data, 4)),
    "a stream that claims too few": lambda data: DataLoader(Claims(data, 5), 4),
    "a stream that claims too many": lambda data: DataLoader(Claims(data, 50), 4),
    "shuffled": lambda data: DataLoader(data, 4, shuffle=True),
}


def figures(trainer, module, loaders):
    return [dict(entry) for entry in trainer.validate(module, loaders, verbose=False)]


@pytest.mark.filterwarnings("ignore:Your .* sampler has shuffling enabled", "ignore:Length of IterableDataset")
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
@pytest.mark.parametrize("kind", LOADERS)
def test_every_sample_counts_in_a_validation_and_in_a_sweep(kind, module, data, make_trainer):
    loaders = {"id/a": LOADERS[kind](data), "ood/c": DataLoader(data, 5)}
    entries = figures(make_trainer(), module, loaders)
    inputs, targets = data.tensors
    with torch.no_grad():
        right = module(inputs).argmax(1) == targets
    assert [entries[0]["id/a"], entries[1]["ood/c"]] == pytest.approx([float(right.float().mean())] * 2)
    assert entries[0].keys() == {"id/a", "id/avg", "ood/avg"}
    result = sweep(make_trainer(), module, {"same": module.recipe, "again": module.recipe}, loaders, at_once=1)
    assert torch.equal(result.outcomes["ood/c"], right.expand(2, -1))
    assert sorted(result.correct("again")["id/a"].tolist()) == sorted(right.tolist())
    if kind not in ("a stream that claims too few", "a stream that claims too many"):
        assert torch.equal(result.correct("same")["id/a"], right)


def test_one_process_is_refused_the_share_of_one_of_two(module, data, make_trainer):
    half = DataLoader(data, 4, sampler=DistributedSampler(data, 2, 0))
    with pytest.raises(
        ValueError, match="'id/a' has a DistributedSampler of num_replicas=2, rank=0, where num_replicas=1"
    ):
        figures(make_trainer(), module, {"id/a": half})
    with pytest.raises(ValueError, match="'id/a' has a DistributedSampler of num_replicas=2"):
        sweep(make_trainer(), module, {"own": module.recipe}, {"id/a": half})


class Short(BatchSampler):
    def __len__(self):
        return 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda data: DataLoader(data, batch_sampler=Short(SequentialSampler(data), 4, False)),
            "Short gives more than the 2",
        ),
        (lambda data: data, "'id/a' is a data set"),
        (lambda data: [DataLoader(data), DataLoader(data)], "'id/a' is a list of loaders"),
        (lambda data: {"train": DataLoader(data)}, "'id/a' is a dict of loaders"),
        (lambda data: [], "'id/a' gives no batch"),
        (lambda data: DataLoader(Claims(data, 0), 4), "'id/a' has an empty data set"),
        (lambda data: DataLoader(data, batch_sampler=Growing(0)), "'id/a' gives no batch"),
        (lambda data: iter([]), "'id/a' gave no batch"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(make, message, module, data, make_trainer):
    with pytest.raises(ValueError, match=message):
        figures(make_trainer(), module, {"id/a": make(data), "id/b": DataLoader(data, 4)})


class OfWorkers(Claims):
    """Of which each worker yields all samples, or its share."""

    def __init__(self, data, shares):
        super().__init__(data, len(data))
        self.shares = shares

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        places = range(worker.id, SIZE, worker.num_workers) if self.shares else range(SIZE)
        return iter([self.data[place] for place in places])


@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:Length of IterableDataset")
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
@pytest.mark.parametrize("shares", [True, False])
def test_samples_that_each_worker_gives_are_told_of(shares, module, data, make_trainer):
    loaders = {"id/a": DataLoader(OfWorkers(data, shares), 4, num_workers=2)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (entry,) = figures(make_trainer(), module, loaders)
    told = [str(warning.message) for warning in caught if "by each of its workers" in str(warning.message)]
    assert len(told) == (0 if shares else 1)
    assert all("'id/a' gives each sample 2 times" in text for text in told)
    inputs, targets = data.tensors
    with torch.no_grad():
        assert entry["id/a"] == pytest.approx(float((module(inputs).argmax(1) == targets).float().mean()))


def test_what_yields_nothing_is_no_loader(module, make_trainer):
    with pytest.raises(TypeError, match="'id/a' must be a loader or yield batches, not a int"):
        figures(make_trainer(), module, {"id/a": 3})
    with pytest.raises(TypeError, match="'id/a' must be a loader"):
        require_loaders({"id/a": 3})

"""Figures on two processes are exactly those of one, or the loader is refused by name; as a script, one of the two."""

import os
import re
import sys
import warnings
from operator import itemgetter

import pytest
import torch
from _helpers.processes import launch, report
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from lwptv_lightning import CollectDataStatistics, MergeModule, TaskVectors
from lwptv_lightning.search import sweep

SIZE = 23
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def draw_data(size=SIZE):
    generator = torch.Generator().manual_seed(size)
    return TensorDataset(torch.randn(size, 6, generator=generator), torch.randint(4, (size,), generator=generator))


def draw_vectors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    tasks = {
        task: {name: tensor + 0.5 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
        for task in "xy"
    }
    return model, TaskVectors.open(model, tasks)


class Samples(Metric):
    """How many samples there were, which an accuracy does not show."""

    def __init__(self):
        super().__init__()
        self.add_state("number", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits, targets):
        self.number += len(targets)

    def compute(self):
        return self.number


class Listed(Metric):
    """A list of matrices, whose sorted entries no order of the processes changes."""

    def __init__(self):
        super().__init__()
        self.add_state("logits", [], dist_reduce_fx="cat")

    def update(self, logits, targets):
        self.logits.append(logits.double().round(decimals=3))

    def compute(self):
        return torch.cat(list(self.logits)).flatten().sort().values.sum().round(decimals=3)


class MeanOfBatches(Metric):
    """A mean over batches, which a plain mean over processes would get wrong."""

    def __init__(self):
        super().__init__()
        self.add_state("mean", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="mean")
        self.batches = 0

    def update(self, logits, targets):
        self.batches += 1
        self.mean += (logits.double().max().round(decimals=2) - self.mean) / self.batches

    def compute(self):
        return self.mean.round(decimals=6)


def make_metric():
    return MetricCollection(
        {
            "top1": MulticlassAccuracy(4, average="micro"),
            "samples": Samples(),
            "listed": Listed(),
            "mean": MeanOfBatches(),
            "auroc": MulticlassAUROC(4),
        }
    )


# Loaders, each made for process `rank` of `size`; one process alone has (0, 1).


class Varying(Sampler):
    """Batches of 1, 2, 3 ... samples."""

    def __iter__(self):
        start, length = 0, 1
        while start < SIZE:
            yield list(range(start, min(start + length, SIZE)))
            start, length = start + length, length + 1


class VaryingBatches(BatchSampler):
    """The same, as a subclass of PyTorch's, which Lightning makes anew with a sampler of its own."""

    def __init__(self, sampler, batch_size, drop_last):
        super().__init__(sampler, batch_size, drop_last)

    def __iter__(self):
        indices = list(self.sampler)
        length = self.batch_size
        while indices:
            yield indices[:length]
            indices, length = indices[length:], length + 1

    def __len__(self):
        return len(list(iter(self)))


class TooShort(VaryingBatches):
    """Has more batches than its base class says of it."""

    def __len__(self):
        return BatchSampler.__len__(self) // 3


class Batches(Dataset):
    """Batches made beforehand, of unequal sizes."""

    def __init__(self):
        inputs, targets = draw_data().tensors
        self.parts = list(zip(inputs.split([5, 1, 8, 9]), targets.split([5, 1, 8, 9]), strict=True))

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, index):
        return self.parts[index]


class Given(Dataset):
    """A set whose items are taken by lists of indices."""

    def __len__(self):
        return SIZE

    def __getitem__(self, indices):
        inputs, targets = draw_data().tensors
        return inputs[indices], targets[indices]


class Stream(IterableDataset):
    """Samples without positions."""

    def __init__(self, places, sized=False):
        self.places = list(places)
        if sized:
            self.__class__ = SizedStream

    def __iter__(self):
        data = draw_data()
        return iter([data[place] for place in self.places])


class SizedStream(Stream):
    def __len__(self):
        return len(self.places)


class EachTwice(DataLoader):
    """A loader that makes more of its batches."""

    def __iter__(self):
        for inputs, targets in super().__iter__():
            yield inputs, targets
            yield -inputs, targets


class OwnShare(Sampler):
    """A user's division over the processes, in blocks, the last of them filled up."""

    def __init__(self, rank, size):
        each = -(-SIZE // size)
        self.own = [place % SIZE for place in range(rank * each, (rank + 1) * each)]

    def __iter__(self):
        return iter(self.own)

    def __len__(self):
        return len(self.own)


def unwrap(samples):
    return samples[0][0][None], samples[0][1][None]


def drop_odd(samples):
    kept = [sample for sample in samples if sample[1] != 1] or samples[:1]
    return torch.stack([sample[0] for sample in kept]), torch.stack([sample[1] for sample in kept])


def crops(samples):
    inputs = torch.stack([part for sample in samples for part in (sample[0], -sample[0], 2 * sample[0])])
    return inputs, torch.stack([sample[1] for sample in samples for _ in range(3)])


def distributed(rank, size, length=SIZE, **options):
    data = draw_data(length)
    return DataLoader(data, 3, sampler=DistributedSampler(data, size, rank, **options))


def list_of_batches(rank, size):
    return list(DataLoader(draw_data(), 4))


def only_sets_of(length):
    return lambda rank, size: DataLoader(draw_data(length), 2)


COUNTED = {
    "plain": lambda rank, size: DataLoader(draw_data(), 4),
    "shuffled": lambda rank, size: DataLoader(draw_data(), 4, shuffle=True),
    "one sample": only_sets_of(1),
    "three samples": only_sets_of(3),
    "workers": lambda rank, size: DataLoader(draw_data(), 4, num_workers=1, persistent_workers=True),
    "any batch sampler": lambda rank, size: DataLoader(draw_data(), batch_sampler=Varying()),
    "list of indices": lambda rank, size: DataLoader(draw_data(), batch_sampler=[list(range(20)), [20, 21, 22]]),
    "varying batches": lambda rank, size: DataLoader(
        draw_data(), batch_sampler=VaryingBatches(SequentialSampler(draw_data()), 2, False)
    ),
    "subset drawn by each": lambda rank, size: DataLoader(draw_data(), 4, sampler=SubsetRandomSampler(range(11))),
    "weighted, seeded": lambda rank, size: DataLoader(
        draw_data(), 4, sampler=WeightedRandomSampler([1.0] * SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    ),
    "own DistributedSampler": lambda rank, size: distributed(rank, size, shuffle=False),
    "own, shuffled": lambda rank, size: distributed(rank, size, shuffle=True, seed=5),
    "own, even, drop_last": lambda rank, size: distributed(rank, size, length=22, shuffle=False, drop_last=True),
    "own, one sample": lambda rank, size: distributed(rank, size, length=1, shuffle=False),
    "own, in a batch sampler": lambda rank, size: DataLoader(
        draw_data(),
        batch_sampler=VaryingBatches(DistributedSampler(draw_data(), size, rank, shuffle=False), 2, False),
    ),
    "own division": lambda rank, size: DataLoader(draw_data(), 4, sampler=OwnShare(rank, size)),
    "ready batches": lambda rank, size: DataLoader(Batches(), batch_size=None),
    "indices in lists": lambda rank, size: DataLoader(
        Given(), batch_size=None, sampler=BatchSampler(SequentialSampler(range(SIZE)), 4, False)
    ),
    "ready batches, unwrapped": lambda rank, size: DataLoader(Batches(), batch_size=1, collate_fn=itemgetter(0)),
    "collate unwraps": lambda rank, size: DataLoader(draw_data(), 4, collate_fn=unwrap),
    "collate drops": lambda rank, size: DataLoader(draw_data(), 4, collate_fn=drop_odd),
    "collate crops": lambda rank, size: DataLoader(draw_data(), 4, collate_fn=crops),
    "list of batches": list_of_batches,
    "loader of a kind of its own": lambda rank, size: EachTwice(draw_data(), 4),
    "uneven stream": lambda rank, size: (
        DataLoader(Stream(range(SIZE)[rank * 19 :: size]), 3)
        if size == 1
        else DataLoader(Stream(range(19) if rank == 0 else range(19, SIZE)), 3)
    ),
    "the same stream": lambda rank, size: DataLoader(Stream(range(SIZE)), 3),
    "the same stream in another order": lambda rank, size: DataLoader(Stream(torch.randperm(SIZE).tolist()), 3),
    "stream with a length": lambda rank, size: DataLoader(Stream(range(rank, SIZE, size), sized=True), 3),
}
"""Makers of loaders that are counted as on one process."""
ANOTHER_ORDER = ("shuffled", "drawn by each", "division", "batch sampler", "uneven stream", "another order", "a length")
"""Whose batches on two processes are not those of one, so that a mean over batches is another."""

REFUSED = {
    "drop_last": (lambda rank, size: distributed(rank, size, shuffle=False, drop_last=True), "22 of the 23 samples"),
    "weighted": (
        lambda rank, size: DataLoader(
            draw_data(),
            4,
            sampler=WeightedRandomSampler([1.0] * SIZE, SIZE, generator=torch.Generator().manual_seed(rank)),
        ),
        "generator with the same seed",
    ),
    "split set": (
        lambda rank, size: DataLoader(Subset(draw_data(), list(range(rank, 22, size))), 4),
        "another data set on each process",
    ),
    "split set of unequal sizes": (
        lambda rank, size: DataLoader(draw_data(5 + rank), 4),
        r"another data set on each process, of \[5, 6\]",
    ),
    "for four": (
        lambda rank, size: DataLoader(draw_data(), 4, sampler=DistributedSampler(draw_data(), 4, rank)),
        "num_replicas=4, rank=[01], where num_replicas=2, rank=[01]",
    ),
    "wrong length": (
        lambda rank, size: DataLoader(draw_data(), batch_sampler=TooShort(SequentialSampler(draw_data()), 2, False)),
        "TooShort gives more than the 4 batches",
    ),
    "empty list": (lambda rank, size: [], "gives no batch"),
    "empty sampler": (lambda rank, size: DataLoader(draw_data(), 4, sampler=SubsetRandomSampler([])), "gives no batch"),
    "no batch on one": (
        lambda rank, size: DataLoader(Stream(range(SIZE) if rank == 0 else []), 3),
        r"gave 2 processes \[8, 0\] batches",
    ),
    "no batch on the first, with a length": (
        lambda rank, size: DataLoader(Stream([] if rank == 0 else range(SIZE), sized=True), 3),
        "empty data set",
    ),
    "no batch at all": (lambda rank, size: DataLoader(Stream([]), 3), "gave no batch"),
    "overlapping": (
        lambda rank, size: DataLoader(Stream(range(12) if rank == 0 else range(9, SIZE)), 3),
        "gives 3 samples to several processes",
    ),
    "batches that one process cannot read": (
        lambda rank, size: DataLoader(
            draw_data(), 4, collate_fn=lambda samples: torch.utils.data.default_collate(samples) if rank == 0 else 3
        ),
        "a batch must be",
    ),
}
"""Makers of loaders that two processes refuse, and what the error says besides the loader's name."""


def validate(loader, name="id/x", **options):
    model, vectors = draw_vectors()
    module = MergeModule(model, vectors, metric=make_metric())
    loaders = {name: loader, "ood/other": DataLoader(draw_data(5), 2)}
    results = Trainer(**QUIET, **options).validate(module, loaders, verbose=False)
    return {key: value for entry in results for key, value in entry.items()}


def count(rank, size, **options):
    """Return the figures of each loader, those with options of the trainer, and what else is measured."""
    found = {}
    for name, make in COUNTED.items():
        torch.manual_seed(100 + rank)
        found[name] = validate(make(rank, size), f"id/{name}", **options)
    plain = COUNTED["plain"]
    own = {"use_distributed_sampler": False}
    found["not distributed"] = validate(plain(rank, size), **options, **own)
    found["not distributed, own division"] = validate(COUNTED["own division"](rank, size), **options, **own)
    for limit in (1, 3, 0.4, 0.99):
        found[f"limit {limit}"] = validate(plain(rank, size), **options, limit_val_batches=limit)
        own_sampler = distributed(rank, size, shuffle=False)
        found[f"own, limit {limit}"] = validate(own_sampler, **options, limit_val_batches=limit)
    for limit in (1, 2, 40):
        varying = COUNTED["any batch sampler"](rank, size)
        found[f"varying, limit {limit}"] = validate(varying, **options, limit_val_batches=limit)
    found["fast_dev_run"] = validate(plain(rank, size), **options, fast_dev_run=1)
    return found


def sweep_all(rank, size, **options):
    """Return the outcomes of each loader in a sweep of two passes over all of them."""
    model, vectors = draw_vectors()
    names = [name for name in COUNTED if name not in ("weighted, seeded", "the same stream in another order")]
    found = {}
    for name in names:
        torch.manual_seed(100 + rank)
        loaders = {f"id/{name}": COUNTED[name](rank, size)}
        recipes = {"a": {"scale": 1.0}, "b": {"scale": 1.0}, "c": {"scale": 0.1}}
        result = sweep(Trainer(**QUIET, **options), MergeModule(model, vectors), recipes, loaders, at_once=1)
        assert torch.equal(result.correct("a")[f"id/{name}"], result.correct("b")[f"id/{name}"])
        found[name] = result.outcomes[f"id/{name}"].int().tolist()
    found["norms of change"] = result.changes
    return found


def collect(rank, size, **options):
    """Return Gram matrices of the first 10 of the samples."""
    model, vectors = draw_vectors()
    collector = CollectDataStatistics("gram", samples=10)
    loaders = {"id/x": COUNTED["any batch sampler"](rank, size), "id/y": DataLoader(draw_data(), 4, shuffle=True)}
    Trainer(**QUIET, **options, callbacks=[collector]).validate(MergeModule(model, vectors), loaders, verbose=False)
    return {name: gram.tolist() for name, gram in collector.statistics["x"].items()}


def told(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except ValueError as error:
        return str(error)
    except TypeError as error:
        return str(error)
    return "nothing"


def refuse(rank, size, **options):
    """Return what is told of each loader, then of those that only some runs refuse."""
    found = {name: told(validate, make(rank, size), f"id/{name}", **options) for name, (make, _) in REFUSED.items()}
    stream = COUNTED["stream with a length"]
    found["limited stream"] = told(validate, stream(rank, size), **options, limit_val_batches=2)
    model, vectors = draw_vectors()
    loaders = {"id/x": stream(rank, size), "id/y": COUNTED["plain"](rank, size)}
    trainer = Trainer(**QUIET, **options, callbacks=[CollectDataStatistics("gram")])
    division = COUNTED["own division"](rank, size)
    found["limited division"] = told(validate, division, **options, limit_val_batches=2)
    found["collected stream"] = told(trainer.validate, MergeModule(model, vectors), loaders, verbose=False)
    loaders = {"id/x": COUNTED["collate crops"](rank, size), "id/y": COUNTED["plain"](rank, size)}
    trainer = Trainer(**QUIET, **options, callbacks=[CollectDataStatistics("gram")])
    found["collected crops"] = told(trainer.validate, MergeModule(model, vectors), loaders, verbose=False)
    found["no division"] = told(Trainer(**QUIET, **options).validate, NoSetup(model, vectors), loaders, verbose=False)
    found["lost state"] = told(
        Trainer(**QUIET, **options).validate, MergeModule(model, vectors, metric=Forgetful()), loaders, verbose=False
    )
    return found


class NoSetup(MergeModule):
    """Forgets what its base class does there."""

    def setup(self, stage):
        pass


class Forgetful(Metric):
    """Does not say how its state is put together."""

    def __init__(self):
        super().__init__()
        self.add_state("number", torch.tensor(0.0), dist_reduce_fx=None)

    def update(self, logits, targets):
        self.number += len(targets)

    def compute(self):
        return self.number


def shard(mesh):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    if mesh is not None:
        fully_shard(model, mesh=mesh["data_parallel"])
    return model


def refuse_sharded(rank, size):
    """Return figures of a sharded model over an even stream, and what is told of uneven ones."""
    _, vectors = draw_vectors()
    found = {}
    places = {"even": range(rank, 22, size), "uneven": range(3) if rank else range(3, 22), "none": range(SIZE * rank)}
    for name, own in places.items():
        module = MergeModule(shard, vectors, {"rule": "task_arithmetic"}, metric=make_metric())
        trainer = Trainer(**QUIET, devices=size, strategy=ModelParallelStrategy(size, 1))
        loaders = {"id/before": DataLoader(Stream(own), 3), "id/x": DataLoader(draw_data(), 4)}
        try:
            results = trainer.validate(module, loaders, verbose=False)
            found[name] = [results[0]["id/before/samples"], results[1]["id/x/samples"]]
        except ValueError as error:
            found[name] = str(error)
    return found


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ddp = {"devices": size, "strategy": "ddp"}
    found = {
        "counted": count(rank, size, **ddp),
        "swept": sweep_all(rank, size, **ddp),
        "collected": collect(rank, size, **ddp),
        "refused": refuse(rank, size, **ddp),
        "sharded": refuse_sharded(rank, size),
    }
    report(sys.argv[1], rank, found)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch(__file__, tmp_path_factory.mktemp("counting"), ranks=2)


@pytest.fixture(scope="module")
def alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "counted": count(0, 1, devices=1),
            "swept": sweep_all(0, 1, devices=1),
            "collected": collect(0, 1, devices=1),
        }


def without(figures, *parts):
    return {name: value for name, value in figures.items() if not name.endswith(parts)}


def test_figures_are_exactly_those_of_one_process(two, alone):
    assert alone["counted"]["id/plain" if "id/plain" in alone["counted"] else "plain"]["id/plain/samples"] == SIZE
    for process in two:
        for name, expected in alone["counted"].items():
            inexact = ("/mean",) if any(part in name for part in ANOTHER_ORDER) else ()
            assert without(process["counted"][name], *inexact) == without(expected, *inexact), name


def test_each_sample_counts_once(two):
    counted = two[0]["counted"]
    for name in ("shuffled", "any batch sampler", "varying batches", "own, shuffled", "own division", "ready batches"):
        assert counted[name][f"id/{name}/samples"] == SIZE
    assert counted["collate crops"]["id/collate crops/samples"] == 3 * SIZE
    assert counted["collate unwraps"]["id/collate unwraps/samples"] == 6
    assert counted["loader of a kind of its own"]["id/loader of a kind of its own/samples"] == 2 * SIZE
    assert counted["limit 3"]["id/x/samples"] == 12
    assert counted["limit 0.4"]["id/x/samples"] == 8


def test_a_sweep_finds_the_outcomes_of_one_process(two, alone):
    for process in two:
        for name, expected in alone["swept"].items():
            found = process["swept"][name]
            if "stream" in name or name == "subset drawn by each":  # whose samples have no place
                found, expected = (sorted(map(sorted, rows)) for rows in (found, expected))
            assert found == expected, name


def test_statistics_are_of_the_same_first_samples(two, alone):
    for process in two:
        for name, gram in alone["collected"].items():
            torch.testing.assert_close(torch.tensor(process["collected"][name]), torch.tensor(gram))


def test_what_cannot_be_counted_is_refused_by_name_on_both(two):
    for process in two:
        for name, (_, message) in REFUSED.items():
            assert re.search(message, process["refused"][name]), (name, process["refused"][name])
            if name != "batches that one process cannot read":
                assert f"'id/{name}'" in process["refused"][name]
        refused = process["refused"]
        assert "'id/x' has no sampler, so that 2 processes cannot tell which batches" in refused["limited stream"]
        assert "'id/x' has samplers of a division of your own" in refused["limited division"]
        assert "'id/x' has no sampler" in refused["collected stream"]
        assert "'id/x' makes" in refused["collected crops"]
        assert "super().setup(stage)" in refused["no division"]
        assert "dist_reduce_fx" in refused["lost state"]


def test_a_sharded_model_with_uneven_streams_ends(two):
    for process in two:
        assert process["sharded"]["even"] == [22, SIZE]
        assert "'id/before'" in process["sharded"]["uneven"]
        assert "'id/before'" in process["sharded"]["none"]


def test_what_would_be_lost_with_the_processes_is_refused(make_trainer):
    # Where the processes of each run end with it, their outcomes would be missing without a word.
    trainer = make_trainer(devices=2, strategy="ddp_spawn")
    model = nn.Linear(2, 2)
    vectors = TaskVectors.open(model, {"a": {"weight": torch.eye(2), "bias": torch.zeros(2)}})
    with pytest.raises(ValueError, match=r"outcomes of a sweep would be lost.*strategy='ddp'"):
        sweep(
            trainer, MergeModule(model, vectors), {"merged": "ties"}, {"id/a": [(torch.zeros(1, 2), torch.tensor([0]))]}
        )
    with pytest.raises(ValueError, match=r"writes to no file=\.\.\. would be lost"):
        CollectDataStatistics("gram").setup(trainer, MergeModule(model, vectors), "validate")
    CollectDataStatistics("gram", file="statistics.safetensors").setup(trainer, MergeModule(model, vectors), "validate")

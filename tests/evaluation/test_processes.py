"""Evaluation on two and three processes, against the same on one; as a script, this file is what each process does."""

import copy
import io
import os
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
from _helpers.processes import environment, launch, report, run_script
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lwptv_lightning import MergeModule, MergeRecipe, PruneAndMerge, TaskVectors, merge
from lwptv_lightning.merging import whole_state
from lwptv_lightning.zoo import demo, run_demo

SIZES = (1, 2, 5, 7, 33)
RECIPE = MergeRecipe("ties", ratio=0.5)
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


# What the processes work on.


def draw_model():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 4)))


def draw_tasks(spoilt=None):
    torch.manual_seed(0)
    model = draw_model()
    tasks = {
        task: {name: tensor + 0.5 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
        for task in "ab"
    }
    if spoilt is not None:
        tasks["b"][spoilt].fill_(torch.nan)
    return model, TaskVectors.open(model, tasks)


def draw_samples(size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 6, generator=generator), torch.randint(4, (size,), generator=generator)


def draw_loaders(sizes=SIZES):
    return {
        f"{domain}/{size}": DataLoader(TensorDataset(*draw_samples(size, size)), batch_size=3 if domain == "id" else 4)
        for size in sizes
        for domain in ("id", "ood")
    }


class Stream(IterableDataset):
    """Samples without positions, of which each process yields its share, or all."""

    def __init__(self, shards_itself):
        self.shards_itself = shards_itself

    def __iter__(self):
        rank, size = (int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", 0), ("RANKS", 1)))
        samples = list(zip(*draw_samples(21), strict=True))
        return iter(samples[rank::size] if self.shards_itself else samples)


class Foreign(LightningModule):
    """Someone else's module, which notes whether it evaluates merged weights."""

    def __init__(self, merged):
        super().__init__()
        self.net = draw_tasks()[0]
        self.merged = merged
        self.saw_merged = []

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.saw_merged.append(all(torch.equal(t, self.merged[n]) for n, t in self.net.state_dict().items()))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Plain(LightningModule):
    """Logs accuracy as Lightning's own documentation does."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.metrics = nn.ModuleList(MulticlassAccuracy(4, average="micro") for _ in range(2))

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.metrics[dataloader_idx].update(self.model(batch[0]), batch[1])
        self.log(f"accuracy/{dataloader_idx}", self.metrics[dataloader_idx], add_dataloader_idx=False)


# What they do.


def state(model):
    return {name: tensor.tolist() for name, tensor in whole_state(model).items()}


def written(module):
    with tempfile.TemporaryDirectory() as folder:
        path = module.save_merged(Path(folder) / "merged.safetensors")
        return {name: tensor.tolist() for name, tensor in load_file(path).items()}


def evaluate(**devices):
    """Return the figures of two stages, the first of them run twice, and the weights."""
    model, vectors = draw_tasks()
    module = MergeModule(model, vectors, RECIPE, expert_accuracy={str(size): 0.5 for size in SIZES})
    trainer = Trainer(**QUIET, **devices)
    figures = [trainer.validate(module, draw_loaders(), verbose=False) for _ in range(2)]
    figures.append(Trainer(**QUIET, **devices).test(module, draw_loaders(), verbose=False))
    return {"figures": figures, "weights": state(model)}


def evaluate_plainly(**devices):
    """Return what plain Lightning finds for sets of 33 and 21 samples, and what a `MergeModule` finds."""
    loaders = {name.replace("ood", "id"): loader for name, loader in draw_loaders((33, 21)).items() if "ood" in name}
    model, vectors = draw_tasks()
    ours = Trainer(**QUIET, **devices).validate(MergeModule(model, vectors, RECIPE), loaders, verbose=False)
    plain = Trainer(**QUIET, **devices).validate(Plain(model), list(loaders.values()), verbose=False)
    return {"plain": [next(iter(entry.values())) for entry in plain], "ours": [ours[0]["id/33"], ours[1]["id/21"]]}


def evaluate_streams(**devices):
    model, vectors = draw_tasks()
    found = {}
    for shards_itself in (True, False):
        loader = DataLoader(Stream(shards_itself), batch_size=4)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            figures = Trainer(**QUIET, **devices).validate(MergeModule(model, vectors), {"id/x": loader}, verbose=False)
        told = [str(warning.message) for warning in caught if "the same samples" in str(warning.message)]
        found[str(shards_itself)] = [figures[0]["id/x"], told]
    return found


def train(**devices):
    """Return whether training with the callback ends as without it, and what the evaluations saw."""
    _, vectors = draw_tasks()
    data = DataLoader(TensorDataset(*draw_samples(24)), batch_size=4)
    merged = merge(vectors, RECIPE)
    ends, saw = [], []
    for callbacks in ([], [PruneAndMerge(vectors, RECIPE)]):
        module = Foreign(merged)
        torch.manual_seed(1)
        Trainer(**QUIET, **devices, max_epochs=2, callbacks=callbacks).fit(module, data, data)
        ends.append(copy.deepcopy(module.net.state_dict()))
        saw.append(module.saw_merged[2:])  # after the sanity check
    return {"same": all(torch.equal(t, ends[1][n]) for n, t in ends[0].items()), "saw_merged": saw}


def fail(**devices):
    """Return what a process is told where one meets a NaN, and whether a foreign module has its weights back."""
    model, vectors = draw_tasks(spoilt="0.weight")
    told = []
    foreign = Foreign({})
    before = copy.deepcopy(foreign.net.state_dict())
    loaders = draw_loaders((5,))
    for module, data, callbacks in (
        (MergeModule(model, vectors), loaders, []),
        (foreign, loaders["id/5"], [PruneAndMerge(vectors)]),
    ):
        trainer = Trainer(**QUIET, **devices, callbacks=callbacks)
        try:
            trainer.validate(module, data, verbose=False)
        except ValueError as error:
            told.append([str(error), str(error.__cause__)])
    return {"told": told, "restored": all(torch.equal(t, before[n]) for n, t in foreign.net.state_dict().items())}


def build_sharded(mesh):
    """Shard over the data-parallel processes; on the meta device, so that nobody ever holds the whole."""
    with torch.device("meta"):
        model = draw_model()
    if mesh is not None:
        fully_shard(model[2], mesh=mesh["data_parallel"])
        fully_shard(model, mesh=mesh["data_parallel"])
    return model


def build_tensor_parallel(mesh):
    model = draw_model()
    if mesh is not None:
        parallelize_module(model[2], mesh["tensor_parallel"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return model


class ShardsItself(MergeModule):
    """A module that is given a model and shards it in Lightning's own hook."""

    def configure_model(self):
        if not isinstance(self.model, FSDPModule):
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


class ForeignSharded(Foreign):
    def configure_model(self):
        if not isinstance(self.net, FSDPModule):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])
        seen = {name: torch.tensor(value) for name, value in state(self.net).items()}
        self.saw_merged.append(all(torch.equal(t, self.merged[n]) for n, t in seen.items()))


def evaluate_sharded():
    """Return what each way of sharding finds: figures twice over, weights, and how much of them is one's own."""
    model, vectors = draw_tasks()
    found = {}
    for label, module, parallel in (
        ("built on meta", MergeModule(build_sharded, vectors, RECIPE), (2, 1)),
        ("tensor parallel", MergeModule(build_tensor_parallel, vectors, RECIPE), (1, 2)),
        ("sharded by a subclass", ShardsItself(model, vectors, RECIPE), (2, 1)),
    ):
        trainer = Trainer(**QUIET, devices=2, strategy=ModelParallelStrategy(*parallel))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            figures = [trainer.validate(module, draw_loaders(), verbose=False) for _ in range(2)]
        own = sum(
            t.to_local().numel() if isinstance(t, DTensor) else t.numel() for t in module.model.state_dict().values()
        )
        found[label] = {
            "figures": figures,
            "weights": state(module.model),
            "written": written(module),
            "own": own,
            "untraced": [str(warning.message) for warning in caught if "cannot trace" in str(warning.message)],
        }
    return found | {"foreign": evaluate_foreign_sharded(vectors)}


def evaluate_foreign_sharded(vectors):
    recipe = RECIPE.replace(ratio=0.0)
    foreign = ForeignSharded(merge(vectors, recipe))
    trainer = Trainer(
        **QUIET, devices=2, strategy=ModelParallelStrategy(2, 1), callbacks=[PruneAndMerge(vectors, recipe)]
    )
    trainer.validate(foreign, draw_loaders()["id/7"], verbose=False)
    restored = all(torch.equal(torch.tensor(v), vectors.base(n)) for n, v in state(foreign.net).items())
    return {"saw_merged": foreign.saw_merged, "restored": restored}


def run_small_demo(devices):
    """Return the figures of each row of the demo's table, cut short."""
    shorter = {"RULES": ("task_arithmetic",), "RANDOM_MASKS": 2, "COEFFICIENTS": (0.3, 0.5)}
    with mock.patch.multiple(demo, **shorter), tempfile.TemporaryDirectory() as folder:
        measured = run_demo(Path(folder), devices=devices, size=7, console=Console(file=io.StringIO()))
    return [[row.name, row.figures, row.note] for row in measured.table.rows]


def everything(devices):
    found = {
        "evaluation": evaluate(**devices),
        "streams": evaluate_streams(**devices),
        "plain": evaluate_plainly(**devices),
        "training": train(**devices),
        "failure": fail(**devices),
    }
    if devices["devices"] < 3:
        found["demo"] = run_small_demo(devices["devices"])
    return found | ({"sharded": evaluate_sharded()} if devices["devices"] == 2 else {})


class Reports(MergeModule):
    """Leaves its figures and weights behind, since `ddp_spawn` returns nothing from its processes."""

    def on_validation_end(self):
        figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        report(sys.argv[1], self.global_rank, {"figures": figures, "weights": state(self.model)})


def evaluate_spawned():
    model, vectors = draw_tasks()
    # Without pruning, since tracing imports timm, which takes a second in each process.
    module = Reports(model, vectors, RECIPE.replace(ratio=0.0))
    Trainer(**QUIET, devices=2, strategy="ddp_spawn").validate(module, draw_loaders(), verbose=False)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    if sys.argv[2] == "spawn":
        evaluate_spawned()
    else:
        ranks = int(sys.argv[2])
        os.environ["RANKS"] = str(ranks)
        found = everything({"devices": ranks, "strategy": "ddp"})
        report(sys.argv[1], os.environ.get("LOCAL_RANK", 0), found)
        torch.distributed.destroy_process_group()


# What is expected of them.


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes, of which Lightning starts the second."""
    return run_script(__file__, tmp_path_factory.mktemp("two"), "2")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three processes, started as by torchrun."""
    return launch(__file__, tmp_path_factory.mktemp("three"), "3", ranks=3)


@pytest.fixture(scope="module", params=["two", "three"])
def several(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def alone():
    return everything({"devices": 1})


def test_figures_are_exactly_those_of_one_process_also_the_second_time(several, alone):
    expected = alone["evaluation"]["figures"]
    assert expected[0] == expected[1] == expected[2]
    assert {f"id/{size}" for size in SIZES} < {name for entry in expected[0] for name in entry}
    assert len({entry[f"id/{size}"] for entry, size in zip(expected[0][::2], SIZES, strict=True)}) > 2
    for process in several:
        assert process["evaluation"]["figures"] == expected


def test_every_process_has_the_weights_of_one_alone(several, alone):
    for process in several:
        assert process["evaluation"]["weights"] == alone["evaluation"]["weights"]


def test_the_demo_prints_the_figures_of_one_process(two, alone):
    assert len(alone["demo"]) == 12
    for process in two:
        assert process["demo"] == alone["demo"]


def test_plain_lightning_counts_samples_twice_and_we_do_not(two, alone):
    expected = alone["plain"]
    assert expected["plain"] == expected["ours"]
    for process in two:
        assert process["plain"]["ours"] == expected["ours"]
        assert all(ours != plain for ours, plain in zip(expected["ours"], process["plain"]["plain"], strict=True))


def test_streams_that_shard_themselves_are_exact_and_others_are_told_of(several, alone):
    expected, told = alone["streams"]["True"]
    assert not told
    assert not alone["streams"]["False"][1]
    for rank, process in enumerate(several):
        assert process["streams"]["True"] == [expected, []]
        figure, told = process["streams"]["False"]
        assert figure == expected  # all are counted equally often
        assert len(told) == (1 if rank == 0 else 0)
        assert all("loader 'id/x' gives several processes the same samples" in text for text in told)


def test_training_goes_on_as_if_nothing_had_been_merged(several):
    for process in several:
        without, with_callback = process["training"]["saw_merged"]
        assert process["training"]["same"]
        assert with_callback
        assert all(with_callback)
        assert not any(without)


def test_all_processes_stop_with_the_error_of_the_one_that_met_it(several):
    for module in range(2):
        told = [process["failure"]["told"][module] for process in several]
        assert len({message for message, _ in told}) == 1
        assert "48 NaN or infinite values in '0.weight'" in told[0][0]
        assert sum(cause == "None" for _, cause in told) == 1
    assert all(process["failure"]["restored"] for process in several)


@pytest.mark.parametrize("way", ["built on meta", "tensor parallel", "sharded by a subclass"])
def test_a_sharded_model_is_the_merged_one(way, two, alone):
    expected = alone["evaluation"]
    elements = sum(parameter.numel() for parameter in draw_model().parameters())
    for process in two:
        found = process["sharded"][way]
        figures = [[{n: v for n, v in e.items() if "normal" not in n} for e in run] for run in expected["figures"][:2]]
        assert found["figures"] == figures
        assert found["weights"] == expected["weights"]
        assert found["written"] == expected["weights"]
        assert found["own"] < elements
        assert not found["untraced"]


def test_a_foreign_sharded_module_is_merged_and_restored(two):
    for process in two:
        assert process["sharded"]["foreign"]["saw_merged"]
        assert all(process["sharded"]["foreign"]["saw_merged"])
        assert process["sharded"]["foreign"]["restored"]


def test_spawned_processes(tmp_path):
    found = run_script(__file__, tmp_path, "spawn")
    model, vectors = draw_tasks()
    module = MergeModule(model, vectors, RECIPE.replace(ratio=0.0))
    expected = Trainer(**QUIET, devices=1).validate(module, draw_loaders(), verbose=False)
    assert len(found) == 2
    for process in found:
        assert process["weights"] == state(model)
        assert process["figures"] == {name: value for entry in expected for name, value in entry.items()}


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: NCCL and FSDPStrategy do")


@pytest.mark.gpu
@NEEDS_GPU
def test_nccl_with_one_process(alone, monkeypatch):
    # Of which the one process takes a port that is free.
    for name, value in (environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}).items():
        monkeypatch.setenv(name, value)
    on_gpu = QUIET | {"accelerator": "gpu"}
    model, vectors = draw_tasks()
    figures = Trainer(**on_gpu, devices=1, strategy="ddp").validate(
        MergeModule(model, vectors, RECIPE), draw_loaders(), verbose=False
    )
    expected = alone["evaluation"]["figures"][0]
    assert figures == [{n: v for n, v in entry.items() if "normal" not in n} for entry in expected]


@pytest.mark.gpu
@NEEDS_GPU
def test_fsdp_strategy_is_refused_with_the_way_out():
    model, vectors = draw_tasks()
    trainer = Trainer(**QUIET | {"accelerator": "gpu"}, devices=1, strategy="fsdp")
    with pytest.raises(ValueError, match="use ModelParallelStrategy"):
        trainer.validate(MergeModule(model, vectors), draw_loaders(), verbose=False)

"""Callbacks of fine-tuning runs on two processes; run as a script, this file is what each process does."""

import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
from _helpers.processes import launch, report
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import CheckpointError, MergeModule, MergeRecipe, OnlineMerge, TaskVectorCheckpoint, TaskVectors

SIZES = (1, 5, 7)
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def draw(size, seed):
    generator = torch.Generator().manual_seed(seed)
    data = TensorDataset(torch.randn(size, 6, generator=generator), torch.randint(4, (size,), generator=generator))
    return DataLoader(data, batch_size=3)


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


class FineTuning(LightningModule):
    """Starts from seeded weights; shards them where the trainer has a mesh for it."""

    def __init__(self, sharded=False):
        super().__init__()
        self.net = make_net()
        self.sharded = sharded

    def configure_model(self):
        if self.sharded:
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def online_merge():
    net = make_net()
    expert = {name: tensor + 0.3 for name, tensor in net.state_dict().items()}
    vectors = TaskVectors.open(net, {"other": expert})
    loaders = {f"{domain}/{size}": draw(size, size) for size in SIZES for domain in ("id", "ood")}
    return OnlineMerge(MergeModule(net, vectors, MergeRecipe("ties", ratio=0.5)), loaders, task="mine", backbone="net")


def fine_tune(folder, sharded=False, epochs=1, ckpt_path=None):
    """Train on two processes and return the logged figures."""
    strategy = ModelParallelStrategy(save_distributed_checkpoint=False) if sharded else "ddp"
    callbacks = [
        online_merge(),
        TaskVectorCheckpoint(folder, "mine", backbone="net"),
        ModelCheckpoint(folder / "saved", filename="{epoch}", save_top_k=-1),
    ]
    trainer = Trainer(**QUIET, devices=2, strategy=strategy, callbacks=callbacks, max_epochs=epochs)
    trainer.fit(FineTuning(sharded), draw(12, 1), draw(3, 2), ckpt_path=ckpt_path, weights_only=True)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def train_and_resume(folder):
    """Return what a process finds: figures of three runs, and why a resumption without its base is refused."""
    found = {"first": fine_tune(folder / "ddp"), "sharded": fine_tune(folder / "sharded", sharded=True)}
    checkpoint = folder / "ddp" / "saved" / "epoch=0.ckpt"
    found["resumed"] = fine_tune(folder / "ddp", epochs=2, ckpt_path=checkpoint)
    try:
        fine_tune(folder / "elsewhere", epochs=2, ckpt_path=checkpoint)
    except CheckpointError as error:
        found["refused"] = str(error)
    return found


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    folder = Path(sys.argv[1])
    report(folder, int(os.environ["RANK"]), train_and_resume(folder))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both_processes(tmp_path_factory):
    """The folder of the runs, and what each process found."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, launch(__file__, folder, ranks=2)


def saved_net(folder, epoch):
    state = torch.load(folder / "saved" / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix("net."): tensor for name, tensor in state.items()}


def figures_on_one_process(net):
    callback = online_merge()
    module = callback.module
    module.vectors = module.vectors.with_task("mine", net)
    found = Trainer(**QUIET, devices=1).validate(module, callback.loaders, verbose=False)
    return {f"merged/{name}": value for part in found for name, value in part.items()}


@pytest.mark.parametrize(
    ("run", "strategy", "epoch"), [("first", "ddp", 0), ("resumed", "ddp", 1), ("sharded", "sharded", 0)]
)
def test_figures_are_exactly_those_of_one_process(run, strategy, epoch, both_processes):
    folder, processes = both_processes
    expected = figures_on_one_process(saved_net(folder / strategy, epoch))
    assert expected.keys() == {f"merged/{d}/{size}" for d in ("id", "ood") for size in (*SIZES, "avg")}
    for process in processes:
        assert process[run] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("strategy", "epoch"), [("ddp", 1), ("sharded", 0)])
def test_the_task_vector_is_against_the_starting_weights(strategy, epoch, both_processes):
    folder = both_processes[0] / strategy
    start, trained = make_net().state_dict(), saved_net(folder, epoch)
    stored = load_file(folder / "task_vector.safetensors")
    assert stored.keys() == start.keys()
    assert all(torch.equal(tensor, trained[name] - start[name]) for name, tensor in stored.items())
    assert any(tensor.any() for tensor in stored.values())


def test_every_process_hears_of_a_failure_of_the_first(both_processes):
    for process in both_processes[1]:
        assert "the weights that the resumed run started from are gone" in process["refused"]

"""Folders of sharded runs; as a script, this file is what each of two processes writes."""

import os
import pickle
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from _helpers.processes import launch, report
from _helpers.states import assert_same_bits
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

from lwptv_lightning import CheckpointError, TaskVectors, merge, open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(2, 3).bfloat16())


# What each process does.


def sharded_parts(mesh):
    from torch.distributed.fsdp import fully_shard

    model = make_model()
    for child in model:
        fully_shard(child, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train_in_lightning(folder):
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard
    from torch.utils.data import DataLoader, TensorDataset

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"folder": Path(folder)})
            self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3))

        def configure_model(self):
            for child in self.net:
                fully_shard(child, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).square().sum()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    torch.manual_seed(0)
    module = Module()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy=strategy, default_root_dir=folder, **quiet)
    trainer.fit(module, DataLoader(TensorDataset(torch.ones(8, 3)), batch_size=2))
    trainer.save_checkpoint(f"{folder}/lightning.ckpt")
    whole = {name: tensor.full_tensor() for name, tensor in module.net.state_dict().items()}
    if trainer.is_global_zero:
        torch.save(whole, f"{folder}/lightning.pt")


def write_all(folder, rank):
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    warnings.simplefilter("ignore")
    train_in_lightning(folder)
    mesh = init_device_mesh("cpu", (2,))
    model = sharded_parts(mesh)
    state, optimizer = get_state_dict(model, torch.optim.AdamW(model.parameters()))
    dcp.save({"model": state, "optim": optimizer, "step": 7}, checkpoint_id=f"{folder}/fsdp2")
    one_file_each = dcp.FileSystemWriter(f"{folder}/alone")
    dcp.save({"model": state}, storage_writer=one_file_each, use_collectives=False)
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(f"{folder}/shards", save_distributed=True))
    numbers = torch.arange(35.0).reshape(5, 7)
    divided = {
        "columns": distribute_tensor(numbers, mesh, [Shard(1)]),
        "both": distribute_tensor(numbers, init_device_mesh("cpu", (1, 2)), [Shard(0), Shard(1)]),
        "few": distribute_tensor(numbers[:1], mesh, [Shard(0)]),
    }
    dcp.save(divided, checkpoint_id=f"{folder}/divided")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """What two processes wrote; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    launch(__file__, folder, ranks=2)
    return folder


@pytest.fixture
def saved(tmp_path):
    """What one process wrote."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    dcp.save({"model": model.state_dict(), "optimizer": optimizer, "epoch": 1}, checkpoint_id=tmp_path / "saved")
    return tmp_path / "saved"


def read(source, **options):
    checkpoint = pickle.loads(pickle.dumps(open_checkpoint(source, **options)))
    checkpoint.require_unchanged()
    return {name: checkpoint.read(name) for name in checkpoint.names}


@pytest.mark.parametrize("what", ["fsdp2", "fsdp2/.metadata", "alone", "shards"])
def test_what_two_processes_wrote_is_read_by_one(what, runs):
    state = make_model().state_dict()
    found = read(runs / what)
    assert_same_bits({name: found[name] for name in state}, state)
    assert found.keys() == state.keys()
    assert open_checkpoint(runs / what).format == "torch.distributed"
    assert not torch.distributed.is_initialized()


def test_the_folder_of_a_sharded_lightning_run(runs):
    folder, whole = runs / "lightning.ckpt", torch.load(runs / "lightning.pt")
    assert {".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"} == {path.name for path in folder.iterdir()}
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "Lightning"
    assert_same_bits(read(folder), whole)
    assert_same_bits(read(folder, prefix="net."), whole)
    base = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    for prefix in (None, "net."):
        vectors = TaskVectors.open(base, {"a": folder}, prefix=prefix)
        assert_same_bits(merge(vectors, {"rule": "task_arithmetic", "scale": 1.0}), whole)
    with pytest.raises(CheckpointError, match="no averaged"):
        open_checkpoint(folder, ema=True)


def test_tensors_may_be_divided_along_any_dimension(runs):
    numbers = torch.arange(35.0).reshape(5, 7)
    assert_same_bits(read(runs / "divided"), {"columns": numbers, "both": numbers, "few": numbers[:1]})


def test_a_tensor_is_read_when_it_is_asked_for(runs, tmp_path):
    shutil.copytree(runs / "divided", tmp_path / "c")
    checkpoint = open_checkpoint(tmp_path / "c")
    os.utime(tmp_path / "c" / "__1_0.distcp", (0, 0))
    assert checkpoint.read("few").tolist() == [[0.0, 1, 2, 3, 4, 5, 6]]
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp: changed while it was in use"):
        checkpoint.read("columns")
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        checkpoint.require_unchanged()


@pytest.mark.parametrize("name", ["optimizer", "optim", "optimizers", "optimizer_states", "optimizer_0", "optim_state"])
def test_optimizers_are_not_read(name, tmp_path):
    state = make_model().state_dict()
    dcp.save({"net": state, name: {"state": {"0": {"moments": torch.ones(3)}}}}, checkpoint_id=tmp_path)
    assert_same_bits(read(tmp_path), state)


@pytest.mark.parametrize("flat", [False, True])
def test_optimizers_are_known_by_what_they_hold_too(flat, tmp_path):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    model[0](torch.ones(2, 3)).sum().backward()
    optimizer.step()
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    own = get_optimizer_state_dict(model, optimizer, options=options)
    dcp.save({"net": model.state_dict(), "opt": own, "epoch": 3}, checkpoint_id=tmp_path)
    assert_same_bits(read(tmp_path), model.state_dict())


def test_weights_may_be_called_as_an_optimizer_is(tmp_path):
    state = {"optimizer.weight": torch.ones(2), "optim.0.bias": torch.zeros(3), "net.w": torch.ones(1)}
    dcp.save(state, checkpoint_id=tmp_path)
    assert_same_bits(read(tmp_path), state)


def test_a_folder_that_is_called_as_the_description_is_none(tmp_path):
    (tmp_path / ".metadata").mkdir()
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name}: no \*\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("wrap", ["state_dict", "model", "app", "", "module of many"])
def test_wherever_in_a_state_the_weights_stand(wrap, tmp_path):
    state = make_model().state_dict()
    flat = state if not wrap else {wrap: state}
    if wrap == "app":
        flat = {"app": {"model": state, "optim": {"moments": torch.ones(2)}}}
    if wrap == "module of many":
        flat = {"model": {"0": {"weight": torch.ones(2)}, "1": [torch.ones(1), {"b": torch.zeros(3)}]}}
        state = {"0.weight": torch.ones(2), "1.0": torch.ones(1), "1.1.b": torch.zeros(3)}
    dcp.save({**flat, "epoch": 3}, checkpoint_id=tmp_path)
    assert_same_bits(read(tmp_path), state)


def test_averaged_weights_are_taken_where_they_are_asked_for(tmp_path):
    last, averaged = ({name: tensor + i for name, tensor in make_model().state_dict().items()} for i in (0, 1))
    dcp.save({"state_dict": last, "state_dict_ema": averaged}, checkpoint_id=tmp_path)
    assert_same_bits(read(tmp_path), last)
    assert_same_bits(read(tmp_path, ema=True), averaged)


def test_dtypes_and_odd_shapes(tmp_path):
    dtypes = (torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64)
    dtypes += (torch.bool, torch.int64, torch.uint8, torch.uint16)
    state = {str(dtype): torch.tensor([[1.0, 0, 1]]).to(dtype) for dtype in dtypes}
    state |= {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 3), "strided": torch.arange(12.0).reshape(3, 4).T}
    state["part"] = torch.arange(12.0)[3:5]
    dcp.save(state, checkpoint_id=tmp_path)
    found = read(tmp_path)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        both = (each.contiguous().reshape(-1).view(torch.uint8) for each in (found[name], tensor))
        assert torch.equal(*both)


def test_the_folders_of_accelerate_and_of_many_threads(saved, tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    shutil.copytree(saved, tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0")
    assert_same_bits(read(tmp_path / "checkpoint-5"), make_model().state_dict())
    writer = dcp.FileSystemWriter(tmp_path / "threads", single_file_per_rank=False, thread_count=2)
    dcp.save({"model": make_model().state_dict()}, storage_writer=writer)
    assert len(list((tmp_path / "threads").glob("*.distcp"))) > 2
    assert_same_bits(read(tmp_path / "threads"), make_model().state_dict())


def test_what_is_missing_or_cut_off_is_named_before_anything_is_read(saved):
    (file,) = saved.glob("*.distcp")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1500])
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: cut off, .*: 'model\.\S+' should stand in \d+ bytes"):
        open_checkpoint(saved)
    file.write_bytes(whole)
    (saved / ".metadata").rename(saved / "moved")
    with pytest.raises(CheckpointError, match=r"saved: a distributed checkpoint without its \.metadata"):
        open_checkpoint(saved)
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: one file of a distributed checkpoint"):
        open_checkpoint(file)
    (saved / "moved").rename(saved / ".metadata")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"files that \.metadata names are missing: __0_0\.distcp\."):
        open_checkpoint(saved)


def test_a_damaged_piece_is_named_when_it_is_read(saved):
    (file,) = saved.glob("*.distcp")
    checkpoint = open_checkpoint(saved)
    first = checkpoint.names[0]
    start = pickle.loads((saved / ".metadata").read_bytes()).storage_data
    at = next(value.offset for key, value in start.items() if key.fqn == f"model.{first}")
    raw = bytearray(file.read_bytes())
    raw[at : at + 4] = b"none"
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=rf"__0_0\.distcp, byte {at}: the piece of 'model\.{first}' .* cannot be"):
        open_checkpoint(saved).read(first)


def test_the_process_without_a_description_is_missed(runs, tmp_path):
    shutil.copytree(runs / "alone", tmp_path / "alone")
    (tmp_path / "alone" / "__1.metadata").unlink()
    with pytest.raises(CheckpointError, match=r"do not make up the whole of model\.0\.weight"):
        open_checkpoint(tmp_path / "alone")
    with pytest.raises(CheckpointError, match="one file of a distributed checkpoint"):
        open_checkpoint(tmp_path / "alone" / "__0.metadata")


def test_shards_of_safetensors_need_each_other(runs, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(runs / "shards", folder)
    first, second = sorted(folder.glob("*.safetensors"))
    with pytest.raises(CheckpointError, match=r"shard-00001.*one file of a distributed checkpoint"):
        open_checkpoint(first)
    kept = first.read_bytes()
    first.unlink()
    with pytest.raises(CheckpointError, match=r"shards are missing: shard-00001\."):
        open_checkpoint(folder)
    first.write_bytes(kept)
    save_file(load_file(second), second)
    with pytest.raises(CheckpointError, match=r"shard-00002\S+: does not say, by DCP_SHARDING_INFO"):
        open_checkpoint(folder)


def test_code_in_a_piece_is_not_run(tmp_path, monkeypatch):
    class Call:
        def __reduce__(self):
            return (pytest.fail, ("it ran",))

    dcp.save({"w": torch.ones(2)}, checkpoint_id=tmp_path)
    (file,) = tmp_path.glob("*.distcp")
    torch.save(Call(), file)
    about = pickle.loads((tmp_path / ".metadata").read_bytes())
    next(iter(about.storage_data.values())).length = file.stat().st_size
    (tmp_path / ".metadata").write_bytes(pickle.dumps(about))
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp, byte 0: expected a piece of 'w', found a \S*Fail"):
        open_checkpoint(tmp_path).read("w")


if __name__ == "__main__":
    write_all(sys.argv[1], int(os.environ["RANK"]))
    report(sys.argv[1], os.environ["RANK"], "done")

import copy
import json

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import CheckpointError, MergeModule, TaskVectorCheckpoint, TaskVectors, open_checkpoint
from lwptv_lightning.checkpoints import fingerprint
from lwptv_lightning.registry import UnknownNameError

# A run may be resumed without the callback that saved its checkpoint.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class FineTuning(LightningModule):
    """A module of someone else's, whose validation loss rises, so that the first epoch's is the best."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
            self.head = nn.Linear(8, 4)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.net(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(12, 6, generator=generator), torch.randint(0, 4, (12,), generator=generator)
    return DataLoader(TensorDataset(inputs, targets), batch_size=4)


@pytest.fixture
def fit(data, make_trainer):
    """``fit(module, *callbacks)``: train for some epochs, with the same random draws whenever a run starts."""

    def run(module, *callbacks, epochs=2, seed=1, ckpt_path=None):
        torch.manual_seed(seed)
        saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
        trainer = make_trainer(max_epochs=epochs, callbacks=list(callbacks), enable_checkpointing=saves)
        trainer.fit(module, data, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        return trainer

    return run


def floating(state):
    return {name: tensor.clone() for name, tensor in state.items() if tensor.is_floating_point()}


def difference(after, before):
    return {name: after[name] - before[name] for name in before}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.parametrize("backbone", ["", "net"])
def test_stores_what_training_changed(backbone, fit, tmp_path):
    module = FineTuning()
    start = floating(module.get_submodule(backbone).state_dict())
    fit(module, TaskVectorCheckpoint(tmp_path / "new", "greek", backbone=backbone))
    stored = load_file(tmp_path / "new" / "task_vector.safetensors")
    assert same(stored, difference(module.get_submodule(backbone).state_dict(), start))
    assert any(tensor.any() for tensor in stored.values())
    base = load_file(tmp_path / "new" / "base.safetensors")
    assert same(floating(base), start)
    assert len(base) == len(start) + 1, "the counter of batches"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["base.safetensors", "task_vector.safetensors"]


def test_metadata_say_whose_it_is(fit, tmp_path):
    module = FineTuning()
    before = fingerprint(open_checkpoint(module.net))
    trainer = fit(module, TaskVectorCheckpoint(tmp_path, "greek", backbone="net", density=0.5))
    metadata = open_checkpoint(tmp_path / "task_vector.safetensors").metadata
    assert metadata["lwptv_kind"] == "task_vector"
    assert metadata["lwptv_task"] == "greek"
    assert metadata["lwptv_base_fingerprint"] == before == fingerprint(open_checkpoint(tmp_path / "base.safetensors"))
    assert metadata["lwptv_density"] == "0.5"
    assert json.loads(metadata["lwptv_metrics"]) == {"loss": 1.0}
    assert json.loads(metadata["lwptv_progress"]) == {"epoch": trainer.current_epoch, "step": 6}
    assert json.loads(metadata["lwptv_versions"])["torch"] == torch.__version__
    assert json.loads(metadata["lwptv_versions"]).keys() == {"lwptv_lightning", "lightning", "torch"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_and_sparsity(dtype, fit, tmp_path):
    whole = TaskVectorCheckpoint(tmp_path / "a", "whole")
    fit(FineTuning(), whole, TaskVectorCheckpoint(tmp_path / "b", "sparse", dtype=dtype, density=0.25))
    full = load_file(tmp_path / "a" / "task_vector.safetensors")
    kept = load_file(tmp_path / "b" / "task_vector.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {getattr(torch, dtype)}
    weights = {name: tensor for name, tensor in full.items() if "running" not in name}
    assert len(weights) == len(full) - 2
    magnitudes = torch.cat([tensor.abs().flatten() for tensor in weights.values()]).sort(descending=True).values
    threshold = magnitudes[round(0.25 * len(magnitudes)) - 1]
    for name, tensor in full.items():
        expected = torch.where(tensor.abs() >= threshold, tensor, 0) if name in weights else tensor
        assert torch.equal(kept[name], expected.to(kept[name].dtype))
    assert sum(int(kept[name].count_nonzero()) for name in weights) == round(0.25 * len(magnitudes))


def test_stores_at_every_save(fit, tmp_path):
    module = FineTuning()
    start = floating(module.state_dict())
    best = ModelCheckpoint(tmp_path, filename="best", monitor="loss", mode="min")
    fit(module, TaskVectorCheckpoint(tmp_path / "best", "t", at_end=False), best, epochs=3)
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert same(load_file(tmp_path / "best" / "task_vector.safetensors"), difference(saved, start))
    assert not torch.equal(saved["head.weight"], module.head.weight)


def test_the_end_is_later_than_the_best(fit, tmp_path):
    module = FineTuning()
    start = floating(module.state_dict())
    best = ModelCheckpoint(tmp_path, filename="best", monitor="loss", mode="min")
    fit(module, TaskVectorCheckpoint(tmp_path / "last", "t"), best)
    assert same(load_file(tmp_path / "last" / "task_vector.safetensors"), difference(module.state_dict(), start))


def test_training_is_the_same_to_the_bit(fit, tmp_path):
    plain, stored = FineTuning(), FineTuning()
    fit(plain)
    fit(stored, TaskVectorCheckpoint(tmp_path, "t"), ModelCheckpoint(tmp_path))
    assert same(plain.state_dict(), stored.state_dict())


@pytest.fixture
def interrupted(fit, tmp_path):
    """A run of one epoch: its starting weights, its checkpoint and its folder."""
    module = FineTuning()
    start = copy.deepcopy(module.state_dict())
    fit(module, TaskVectorCheckpoint(tmp_path / "run", "t"), ModelCheckpoint(tmp_path, filename="one"), epochs=1)
    return start, tmp_path / "one.ckpt", tmp_path / "run"


@pytest.mark.parametrize("earlier", [False, True], ids=["new checkpoint", "fingerprint by SHA-256"])
def test_a_resumed_run_goes_on_from_its_original_base(earlier, interrupted, fit):
    start, checkpoint, folder = interrupted
    if earlier:
        stored = torch.load(checkpoint, weights_only=True)
        (state,) = (state for state in stored["callbacks"].values() if "base_fingerprint" in state)
        state["base_fingerprint"] = fingerprint(open_checkpoint(folder / "base.safetensors"), "SHA-256")
        torch.save(stored, checkpoint)
    module = FineTuning(seed=9)
    fit(module, TaskVectorCheckpoint(folder, "t"), ckpt_path=checkpoint)
    stored = load_file(folder / "task_vector.safetensors")
    assert same(stored, difference(module.state_dict(), floating(start)))
    assert same(load_file(folder / "base.safetensors"), start)
    assert json.loads(open_checkpoint(folder / "task_vector.safetensors").metadata["lwptv_progress"])["step"] == 6


def test_another_fit_with_the_same_callback_keeps_the_base(fit, tmp_path):
    module, callback = FineTuning(), TaskVectorCheckpoint(tmp_path, "t")
    start = floating(module.state_dict())
    fit(module, callback, epochs=1)
    fit(module, callback, epochs=1)
    assert same(load_file(tmp_path / "task_vector.safetensors"), difference(module.state_dict(), start))


def test_a_resumed_run_needs_its_base(interrupted, fit):
    _, checkpoint, folder = interrupted
    (folder / "base.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the weights that the resumed run started from are gone"):
        fit(FineTuning(), TaskVectorCheckpoint(folder, "t"), ckpt_path=checkpoint)


def test_a_resumed_run_refuses_another_base(interrupted, fit, tmp_path):
    _, checkpoint, _ = interrupted
    fit(FineTuning(seed=5), TaskVectorCheckpoint(tmp_path / "other", "t"), epochs=1)
    with pytest.raises(CheckpointError, match=r"not the weights that the resumed run started from .fingerprint \w{12}"):
        fit(FineTuning(), TaskVectorCheckpoint(tmp_path / "other", "t"), ckpt_path=checkpoint)


def test_a_checkpoint_made_without_the_callback_is_refused(fit, tmp_path):
    fit(FineTuning(), ModelCheckpoint(tmp_path, filename="plain"), epochs=1)
    with pytest.raises(ValueError, match=r"plain\.ckpt was made without TaskVectorCheckpoint"):
        fit(FineTuning(), TaskVectorCheckpoint(tmp_path / "run", "t"), ckpt_path=tmp_path / "plain.ckpt")


def test_two_submodules_are_told_apart(fit, tmp_path):
    def callbacks():
        return [TaskVectorCheckpoint(tmp_path / path, "t", backbone=path) for path in ("net", "head")]

    start = copy.deepcopy(FineTuning().state_dict())
    fit(FineTuning(), *callbacks(), ModelCheckpoint(tmp_path, filename="one"), epochs=1)
    module = FineTuning()
    fit(module, *callbacks(), ckpt_path=tmp_path / "one.ckpt")
    stored = load_file(tmp_path / "head" / "task_vector.safetensors")
    assert same(stored, {name: module.state_dict()[f"head.{name}"] - start[f"head.{name}"] for name in stored})


def test_saves_of_weights_only_are_warned_of(fit, tmp_path):
    with pytest.warns(UserWarning, match="save_weights_only=True, with which Lightning asks no callback"):
        fit(FineTuning(), TaskVectorCheckpoint(tmp_path, "t"), ModelCheckpoint(tmp_path, save_weights_only=True))


def test_a_failed_write_leaves_the_last_file(fit, tmp_path, monkeypatch):
    callback = TaskVectorCheckpoint(tmp_path, "t")
    fit(FineTuning(), callback)
    before = (tmp_path / "task_vector.safetensors").read_bytes()

    def fail(writer, name, values):
        raise OSError("disk full")

    monkeypatch.setattr("lwptv_lightning.checkpoints.SafetensorsWriter.write", fail)
    with pytest.raises(OSError, match="disk full"):
        fit(FineTuning(), callback)
    assert (tmp_path / "task_vector.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "task_vector.safetensors"]


@pytest.mark.parametrize("density", [0.0, 1.5, -1.0])
def test_density_out_of_range(density):
    with pytest.raises(ValueError, match=rf"density must be in \(0, 1\], not {density}"):
        TaskVectorCheckpoint("out", "t", density=density)


def test_unknown_names_suggest_the_nearest(fit, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown dtype 'float61'. Did you mean 'float16'"):
        TaskVectorCheckpoint(tmp_path, "t", dtype="float61")
    with pytest.raises(UnknownNameError, match="unknown backbone 'nett'. Did you mean 'net'"):
        fit(FineTuning(), TaskVectorCheckpoint(tmp_path, "t", backbone="nett"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", [False, True], ids=["beside the backbone", "in it"])
def test_two_runs_from_one_backbone_merge_with_the_heads_that_are_stored(inside, fit, data, make_trainer, tmp_path):
    runs = {}
    for task, classes in {"a": 4, "b": 6}.items():
        run = FineTuning()
        run.head = nn.Linear(8, classes)
        if inside:
            run.net.append(run.head)
            run.head = nn.Identity()
        path = "net.3" if inside else "head"
        fit(run, TaskVectorCheckpoint(tmp_path / task, task, backbone="net", head=path), epochs=1)
        runs[task] = run.eval()
    stored = {task: tmp_path / task / "task_vector.safetensors" for task in runs}
    heads = {task: tmp_path / task / "heads.safetensors" for task in runs}
    exclude = ("3.*",) if inside else ()
    vectors = TaskVectors.open(tmp_path / "a" / "base.safetensors", stored, exclude=exclude)
    recipe = {"rule": "task_arithmetic", "scale": 1.0}
    for task, run in runs.items():
        net = copy.deepcopy(FineTuning().net)
        if inside:
            net.append(nn.Linear(8, 4))
        module = MergeModule(net, vectors.select([task]), recipe, heads=heads).merge_()
        inputs = data.dataset.tensors[0]
        with torch.no_grad():
            torch.testing.assert_close(module.eval()(inputs, task), run.head(run.net(inputs)))
    both = MergeModule(copy.deepcopy(net), vectors, recipe, heads=heads)
    loaders = {f"id/{task}": data for task in runs}
    figures = make_trainer().validate(both, loaders, verbose=False)
    assert {"id/a", "id/b", "id/avg"} == {name for entry in figures for name in entry}


def test_a_head_that_is_none_is_refused_with_the_nearest(fit, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown head 'heat'. Did you mean 'head'"):
        fit(FineTuning(), TaskVectorCheckpoint(tmp_path, "a", backbone="net", head="heat"))
    assert not any(tmp_path.iterdir())

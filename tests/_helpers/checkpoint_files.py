"""One small state dict, written in each of the formats."""

import json

import torch
from safetensors.torch import save_file

STATE = {
    "w": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "steps": torch.tensor(7),
}


def write_safetensors(folder):
    save_file(STATE, folder / "model.safetensors", metadata={"origin": "here"})
    return folder / "model.safetensors"


def write_sharded(folder):
    names = list(STATE)
    shards = {"a.safetensors": names[:1], "b.safetensors": names[1:]}
    for shard, part in shards.items():
        save_file({name: STATE[name] for name in part}, folder / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / "model.safetensors.index.json"


def write_sharded_folder(folder):
    return write_sharded(folder).parent


def write_torch(folder):
    torch.save(STATE, folder / "model.pt")
    return folder / "model.pt"


def write_legacy_torch(folder):
    torch.save(STATE, folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def write_wrapped(folder):
    torch.save({"epoch": 3, "state_dict": STATE}, folder / "model.tar")
    return folder / "model.tar"


def lightning_checkpoint(make_trainer, path, **children):
    from lightning.pytorch import LightningModule
    from torch.utils.data import DataLoader, TensorDataset

    class Wrapper(LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"lr": 0.1})
            for name, child in children.items():
                setattr(self, name, child)

        def training_step(self, batch, batch_idx):
            return sum(child(batch[0]).sum() for child in self.children())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    module = Wrapper()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=2))
    trainer.save_checkpoint(path)
    return module


def assert_holds_state(checkpoint):
    assert set(checkpoint.names) == set(STATE)
    for name, tensor in STATE.items():
        assert checkpoint.headers[name].shape == tuple(tensor.shape)
        assert checkpoint.headers[name].dtype == checkpoint.read(name).dtype == tensor.dtype
        assert torch.equal(checkpoint.read(name), tensor)

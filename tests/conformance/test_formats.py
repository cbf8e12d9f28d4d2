"""Whatever holds a fine-tuned model, the same task vector comes of it, to the bit.

A new format is one function in `FORMATS`: it writes a model, and returns what to open and the options that this needs.
The changes are of rank 1 and of small whole numbers, so that an adapter can hold them and no sum rounds.
"""

import argparse
import json

import pytest
import torch
from _helpers.models import make_model
from _helpers.states import assert_same_bits
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import save_file

from lwptv_lightning import TaskVectors, merge, open_checkpoint
from lwptv_lightning.checkpoints import fingerprint

CHANGED = ("blocks.0.fc1", "blocks.1.fc2", "head")
"""The linear layers whose weights are tuned."""


def in_eighths(state):
    return {name: (8 * tensor).round() / 8 + 0.0 for name, tensor in state.items()}


def factors(base, layer):
    """Return the columns and the row of whose product a layer's change consists."""
    rows, columns = base[f"{layer}.weight"].shape
    generator = torch.Generator().manual_seed(rows + columns)
    shapes = ((rows, 1), (1, columns))
    # No zeros, whose products have a sign that is lost in a sum.
    return [2.0 * torch.randint(0, 2, shape, generator=generator) - 1 for shape in shapes]


@pytest.fixture(scope="module")
def base():
    return in_eighths(make_model("ViT").state_dict())


@pytest.fixture(scope="module")
def tau(base):
    changes = {f"{layer}.weight": torch.mm(*factors(base, layer)) for layer in CHANGED}
    return {name: changes.get(name, torch.zeros_like(tensor)) for name, tensor in base.items()}


@pytest.fixture(scope="module")
def tuned(base, tau):
    return {name: base[name] + tau[name] for name in base}


def safetensors_file(folder, base, tuned):
    save_file(tuned, folder / "model.safetensors")
    return folder / "model.safetensors", {}


def sharded_safetensors(folder, base, tuned):
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(tuned, folder, max_shard_size="1KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder, {}


def index_of_shards(folder, base, tuned):
    sharded_safetensors(folder, base, tuned)
    (index,) = folder.glob("*.index.json")
    return index, {}


def torch_file(folder, base, tuned):
    torch.save(tuned, folder / "model.pt")
    return folder / "model.pt", {}


def compiled_and_wrapped(folder, base, tuned):
    torch.save({"state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in tuned.items()}}, folder / "m.pth")
    return folder / "m.pth", {}


def lightning_checkpoint(folder, base, tuned):
    module = LightningModule()
    module.net = module_of(folder, base, tuned)[0]
    trainer = Trainer(barebones=True, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt", {}


def lightning_checkpoint_with_a_prefix(folder, base, tuned):
    path, _ = lightning_checkpoint(folder, base, tuned)
    return path, {"prefix": "net."}


def timms_checkpoint(folder, base, tuned):
    content = {"epoch": 3, "arch": "vit", "state_dict": tuned, "args": argparse.Namespace(output=folder), "metric": 0.5}
    torch.save(content, folder / "model_best.pth.tar")
    return folder / "model_best.pth.tar", {}


def torchs_averaged_model(folder, base, tuned):
    state = {"n_averaged": torch.tensor(3)} | {f"module.{name}": tensor for name, tensor in tuned.items()}
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors", {"ema": True}


def averaged_weights(folder, base, tuned):
    last = {name: tensor + 1 for name, tensor in tuned.items()}
    torch.save({"state_dict": last, "state_dict_ema": tuned}, folder / "model.pt")
    return folder / "model.pt", {"ema": True}


def last_weights(folder, base, tuned):
    averaged = {name: tensor + 1 for name, tensor in tuned.items()}
    torch.save({"state_dict": tuned, "state_dict_ema": averaged}, folder / "model.pt")
    return folder / "model.pt", {"ema": False}


def sharded_torch(folder, base, tuned):
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(tuned, folder, max_shard_size="1KB", safe_serialization=False)
    assert len(list(folder.glob("*.bin"))) > 1
    return folder, {}


def sharded_run(folder, base, tuned):
    import torch.distributed.checkpoint as dcp

    moments = {name: tensor + 1 for name, tensor in tuned.items()}
    dcp.save({"model": tuned, "optim": {"state": moments}}, checkpoint_id=folder)
    return folder, {}


def state_dict(folder, base, tuned):
    return tuned, {}


def module_of(folder, base, tuned):
    model = make_model("ViT")
    model.load_state_dict(tuned)
    return model, {}


def open_already(folder, base, tuned):
    path, _ = safetensors_file(folder, base, tuned)
    return open_checkpoint(path), {}


def lora_adapter(folder, base, tuned):
    prefix = "base_model.model"
    products = {layer: factors(base, layer) for layer in CHANGED}
    tensors = {f"{prefix}.{layer}.lora_A.weight": row for layer, (_, row) in products.items()}
    tensors |= {f"{prefix}.{layer}.lora_B.weight": columns for layer, (columns, _) in products.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": list(CHANGED), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder, {}


def stored_task_vector(folder, base, tuned):
    tau = {f"{layer}.weight": torch.mm(*factors(base, layer)) for layer in CHANGED}
    about = {"lwptv_kind": "task_vector", "lwptv_base_fingerprint": fingerprint(open_checkpoint(base))}
    save_file(tau, folder / "task_vector.safetensors", metadata=about)
    return folder, {}


FORMATS = [
    safetensors_file,
    sharded_safetensors,
    index_of_shards,
    torch_file,
    compiled_and_wrapped,
    lightning_checkpoint,
    lightning_checkpoint_with_a_prefix,
    timms_checkpoint,
    torchs_averaged_model,
    averaged_weights,
    last_weights,
    sharded_torch,
    sharded_run,
    state_dict,
    module_of,
    open_already,
    lora_adapter,
    stored_task_vector,
]
EVERY_FORMAT = pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@EVERY_FORMAT
def test_every_format_opens_to_the_same_task_vector(write, base, tau, tuned, tmp_path):
    source, options = write(tmp_path, base, tuned)
    vectors = TaskVectors.open(base, {"a": source}, **options)
    assert vectors.names == tuple(base)
    assert_same_bits({name: vectors.stack(name)[0] for name in vectors.names}, tau)
    assert_same_bits({name: vectors.expert("a", name) for name in vectors.names}, tuned)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@EVERY_FORMAT
def test_every_format_merges_to_the_fine_tuned_model(write, base, tuned, tmp_path):
    source, options = write(tmp_path, base, tuned)
    vectors = TaskVectors.open(base, {"a": source}, **options)
    assert_same_bits(merge(vectors, {"rule": "task_arithmetic", "scale": 1.0}), tuned)


def test_formats_may_stand_side_by_side(base, tau, tuned, tmp_path):
    sources = {}
    for write in (sharded_safetensors, lightning_checkpoint, module_of, lora_adapter, stored_task_vector):
        (tmp_path / write.__name__).mkdir()
        sources[write.__name__], _ = write(tmp_path / write.__name__, base, tuned)
    vectors = TaskVectors.open(base, sources)
    for name in vectors.names:
        assert torch.equal(vectors.stack(name), tau[name].expand(len(sources), *tau[name].shape))

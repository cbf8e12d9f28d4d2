"""Damaged files of every format: read as they are, or refused; never a crash, a hang, a flood or another tensor."""

import json
import math
import os
import pickle
import random
import resource
import time
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch
from _helpers import mutations
from _helpers.forked import forked
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lwptv_lightning import CheckpointError, MergeRecipe, TaskVectors, open_checkpoint
from lwptv_lightning.checkpoints import Provenance, fingerprint, tensor_fingerprints, write_safetensors
from lwptv_lightning.merging import read_data_statistics, write_data_statistics

SECONDS = 2.0
"""Of the processor's time that a file may take."""
MEMORY = 1 << 30
"""Bytes that all of it may take beside what is loaded already."""
BATCH = 50
STATE = {
    "fc1.weight": torch.arange(48.0).reshape(8, 6),
    "fc1.bias": torch.ones(8),
    "half": torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16),
    "steps": torch.tensor(7),
    "mask": torch.tensor([True, False]),
}
BASE = {name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in STATE.items()}


def all_of(checkpoint):
    found = {}
    for name in checkpoint.names:
        found[name], header = checkpoint.read(name), checkpoint.headers[name]
        assert tuple(found[name].shape) == header.shape
        assert found[name].dtype == header.dtype
    return found


def opened(file):
    return lambda: all_of(open_checkpoint(file))


def stacks(file):
    def read():
        vectors = TaskVectors.open(BASE, {"a": file})
        return {name: vectors.stack(name)[0] for name in vectors.names}

    return read


def by_safetensors():
    return load_file("model.safetensors")


def by_the_index():
    weight_map = json.loads(Path("model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for name, shard in weight_map.items():
        with safe_open(shard, framework="pt") as file:
            found[name] = file.get_tensor(name)
    return found


class Stub(dict):
    """What stands for an object of any other class."""

    def __init__(self, *_, **__):
        super().__init__()

    def __setstate__(self, state):
        pass


class Lenient(pickle.Unpickler):
    """Knows what tensors are made by, and makes nothing else of a file's names than stubs."""

    def find_class(self, module, name):
        known = (module, name) == ("collections", "OrderedDict") or module == "torch._utils"
        return super().find_class(module, name) if known else Stub


def by_torch(file):
    def read():
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if "Unsupported global" not in str(error):
                raise
            lenient = SimpleNamespace(__name__="lenient", Unpickler=Lenient, load=pickle.load, loads=pickle.loads)
            content = torch.load(file, map_location="cpu", weights_only=False, pickle_module=lenient)
        keys = ("state_dict", "model_state_dict", "model")
        while inner := [content[key] for key in keys if isinstance(content.get(key), dict)]:
            content = inner[0]
        return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}

    return read


def by_peft():
    config, weights = json.loads(Path("adapter_config.json").read_text()), load_file("adapter_model.safetensors")
    found = {name: torch.zeros_like(tensor) for name, tensor in BASE.items() if tensor.is_floating_point()}
    for name, a in weights.items():
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        if name.endswith(".lora_A.weight"):
            b = weights[name.replace("lora_A", "lora_B")]
            scaling = config.get("lora_alpha", 8) / (math.sqrt(len(a)) if config.get("use_rslora") else len(a))
            product = (b.double() @ a.double() * scaling).float()
            fits = product.shape == BASE[f"{module}.weight"].shape  # PEFT, too, corrects the flag by the layer
            found[f"{module}.weight"] = product if fits else product.T
    return found


def by_subtraction():
    with safe_open("task_vector.safetensors", framework="pt") as file:
        is_difference = (file.metadata() or {}).get("lwptv_kind") == "task_vector"
    stored = load_file("task_vector.safetensors")
    names = [name for name, tensor in BASE.items() if tensor.is_floating_point()]
    if is_difference:
        return {name: stored.get(name, torch.zeros_like(BASE[name])).float() for name in names}
    return {name: stored[name].float() - BASE[name].float() for name in names}


def write_one():
    save_file(STATE, "model.safetensors", {"origin": "here"})


def write_shards():
    names = list(STATE)
    shards = {"s1.safetensors": names[:2], "s2.safetensors": names[1:]}
    for shard, part in shards.items():
        save_file({name: STATE[name] for name in part}, shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    Path("model.safetensors.index.json").write_text(json.dumps(index))


def write_archive():
    torch.save(STATE, "model.pt")


def write_sequence():
    torch.save(STATE, "model.pth", _use_new_zipfile_serialization=False)


def write_lightning():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(
        {
            "epoch": 1,
            "global_step": 4,
            "pytorch-lightning_version": "2.6.0",
            "state_dict": {f"model.{name}": tensor for name, tensor in STATE.items()},
            "optimizer_states": [optimizer.state_dict()],
            "hyper_parameters": {"lr": 0.1, "sizes": [1, (2, 3)], "name": "ü"},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": None, "steps": set()}},
        },
        "last.ckpt",
    )


def write_adapter():
    generator = torch.Generator().manual_seed(0)
    factors = {"A": torch.randn(2, 6, generator=generator), "B": torch.randn(8, 2, generator=generator)}
    weights = {f"base_model.model.fc1.lora_{factor}.weight": tensor for factor, tensor in factors.items()}
    save_file(weights, "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "lora_alpha": 6,
        "r": 2,
        "use_rslora": False,
        "alpha_pattern": {},
        "rank_pattern": {},
    }
    config |= {"fan_in_fan_out": False, "init_lora_weights": True, "use_dora": False, "target_modules": ["fc1"]}
    Path("adapter_config.json").write_text(json.dumps(config))


def write_task_vector():
    base = open_checkpoint(BASE)
    made = Provenance(
        kind="task_vector", base=fingerprint(base), base_tensors=tensor_fingerprints(base), tasks={"a": None}
    )
    floating = {name: tensor for name, tensor in STATE.items() if tensor.is_floating_point()}
    write_safetensors(floating, "task_vector.safetensors", made.to_metadata())


def write_statistics():
    floating = {name: tensor for name, tensor in STATE.items() if tensor.is_floating_point()}
    write_data_statistics({"a": floating, "b": floating}, "fisher.safetensors")


def read_statistics():
    data = read_data_statistics("fisher.safetensors")
    return {f"{number}.{name}": values for number, task in enumerate(data) for name, values in data[task].items()}


def write_recipe():
    recipe = MergeRecipe({"name": "ties", "density": 0.3}, scale=0.4, ratio=0.25, score="mean_abs", keep=("fc1",))
    Path("recipe.json").write_text(recipe.to_json())


def read_recipe():
    recipe = MergeRecipe.from_json(Path("recipe.json"))
    assert MergeRecipe.from_json(recipe.to_json()) == recipe
    return {}


ARCHIVE = (mutations.in_archive, mutations.in_archive, mutations.in_archive_headers, mutations.in_last_bytes)
HEADER = (mutations.in_header, mutations.in_header, mutations.in_first_bytes)
FORMATS = {
    "safetensors": (write_one, opened("model.safetensors"), by_safetensors, HEADER),
    "shards": (write_shards, opened("model.safetensors.index.json"), by_the_index, HEADER),
    "archive of torch.save": (write_archive, opened("model.pt"), by_torch("model.pt"), ARCHIVE),
    "torch.save before 1.6": (write_sequence, opened("model.pth"), by_torch("model.pth"), (mutations.in_sequence,) * 3),
    "Lightning": (write_lightning, opened("last.ckpt"), by_torch("last.ckpt"), ARCHIVE),
    "adapter": (write_adapter, stacks("."), by_peft, HEADER),
    "task vector": (write_task_vector, stacks("task_vector.safetensors"), by_subtraction, HEADER),
    "data statistics": (write_statistics, read_statistics, lambda: load_file("fisher.safetensors"), HEADER),
    "recipe": (write_recipe, read_recipe, dict, ()),
}
"""How each format is written and read, by us and by another's reader, and what its structure allows to damage."""


def damaged(files, structured, drawn):
    """Return the name of one of some files, and its content after some damage."""
    name = drawn.choice(sorted(files))
    own = (mutations.in_json,) * 3 if name.endswith(".json") else structured
    return name, drawn.choice((*mutations.BLIND, *own, *own, *own))(files[name], drawn)


def verdict(read, other, original):
    """Return how a file was taken: ``"read"``, ``"refused"``, or what is wrong."""
    try:
        found = read()
    except (CheckpointError, FileNotFoundError):
        return "refused"
    except (ValueError, TypeError, KeyError) as error:
        return "refused" if read is read_recipe else f"{type(error).__name__}: {error}"
    try:
        expected = other()
    except Exception:  # who refuses is stricter than we are: then nothing may differ from what was written
        expected = original
    # A Lightning checkpoint's names lose the one prefix that they have.
    known = [{name.removeprefix("model."): tensor for name, tensor in each.items()} for each in (expected, original)]
    found = {name.removeprefix("model."): tensor for name, tensor in found.items()}
    differing = [name for name in found if not any(_same(found[name], each.get(name)) for each in known)]
    return f"other tensors: {differing}" if differing else "read"


def _same(ours, theirs):
    if theirs is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if torch.equal(ours.contiguous().reshape(-1).view(torch.uint8), theirs.contiguous().reshape(-1).view(torch.uint8)):
        return True
    return ours.is_floating_point() and torch.allclose(
        ours.double(), theirs.double(), equal_nan=True, rtol=1e-5, atol=0
    )


def tried(format, files, original, seeds):
    """Try some damaged files, and return how each was taken."""
    _, read, other, structured = FORMATS[format]
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    warnings.simplefilter("ignore")
    outcomes = []
    for seed in seeds:
        for name, content in files.items():
            Path(name).write_bytes(content)
        name, content = damaged(files, structured, random.Random(f"{format} {seed}"))
        Path(name).write_bytes(content)
        began = time.process_time()
        try:
            outcome = verdict(read, other, original)
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        taken = time.process_time() - began
        outcomes.append(outcome if taken < SECONDS else f"{taken:.1f} s")
    return outcomes


def outcomes_of(format, folder, count):
    """Return how some damaged files of a format were taken."""
    folder.mkdir()
    os.chdir(folder)
    write, read, *_ = FORMATS[format]
    write()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    original = {name: tensor.clone() for name, tensor in read().items()}
    outcomes = []
    for start in range(0, count, BATCH):
        seeds = range(start, start + BATCH)
        found, ended = forked(lambda seeds=seeds: tried(format, files, original, seeds), seconds=120)
        if ended is not None:  # which one it was
            found = []
            for seed in seeds:
                one, ended = forked(lambda seed=seed: tried(format, files, original, [seed]), seconds=20)
                found += one or [ended]
        outcomes += found
    return outcomes


def test_damaged_files_are_read_as_they_are_or_refused(tmp_path, monkeypatch, amount, row):
    monkeypatch.chdir(tmp_path)
    counted, wrong = Counter(), {}
    for format in FORMATS:
        outcomes = outcomes_of(format, tmp_path / format, amount(BATCH, 50 * BATCH))
        wrong |= {(format, n): each for n, each in enumerate(outcomes) if each not in ("read", "refused")}
        assert outcomes.count("refused") > len(outcomes) / 10, format
        counted.update(outcomes)
    assert wrong == {}
    said = f"{counted['refused']:,} refused by name, {counted['read']:,} read as the format's own reader does; "
    row(f"{counted.total():,} damaged files of {len(FORMATS)} formats", said + "no crash, hang, flood or other tensor")

"""Small models of one value, written in one file or in shards, and what each way to open them gives."""

import torch

from lwptv_lightning import MergeRecipe, TaskVectors, open_checkpoint, save_merged

SHARDS = {"single": "5GB", "sharded": 40, "more shards": 20}
FILES = {"single": 1, "sharded": 3, "more shards": 5}
"""How many files each is written to."""
NAMES = {f"w{number}" for number in range(4)}


def write_model(path, value, size, **options):
    base = {name: torch.zeros(5) for name in sorted(NAMES)}
    vectors = TaskVectors.open(base, {"a": {name: tensor + value for name, tensor in base.items()}})
    return save_merged(vectors, MergeRecipe("simple_average"), path, max_shard_size=SHARDS[size], **options)


def value_of(source):
    """Return the one value of all tensors; None where nothing is there."""
    if not source.exists():
        return None
    opened = open_checkpoint(source)
    assert set(opened.names) == NAMES
    (value,) = {number for name in opened.names for number in opened.read(name).tolist()}
    return value


def values_in(folder, name="m.safetensors"):
    """Return what the file, the index and the folder open as; None where that way nothing is there."""
    by_file, by_index = value_of(folder / name), value_of(folder / f"{name}.index.json")
    return by_file, by_index, None if by_file is by_index is None else value_of(folder)

"""Bits of written models that changed on the disk are found, wherever they stand."""

import random

import pytest
import torch

from lwptv_lightning import CheckpointError, MergeRecipe, TaskVectors, save_merged
from lwptv_lightning.inspection import verify

FORMS = {"one file": "5GB", "shards": 400}


@pytest.fixture
def models(tmp_path):
    """Paths of a model in one file and of one in shards."""
    generator = torch.Generator().manual_seed(0)
    base = {f"blocks.{n}.weight": torch.randn(9, 7, generator=generator) for n in range(4)}
    tasks = {task: {name: tensor + 0.01 * n for name, tensor in base.items()} for n, task in enumerate("ab", start=1)}
    vectors = TaskVectors.open(base, tasks)
    written = {}
    for form, size in FORMS.items():
        path = tmp_path / form / "merged.safetensors"
        written[form] = save_merged(vectors, MergeRecipe("ties", ratio=0.5), path, max_shard_size=size)
    return written


def is_found(path):
    try:
        return not verify(path).passed
    except CheckpointError as error:
        return ".safetensors" in str(error)


def test_flipped_bits(models, amount, row):
    draw, tried = random.Random(1), 0
    for path in models.values():
        files = sorted(path.parent.glob("*.safetensors"))
        for _ in range(amount(100, 6_000)):
            file = draw.choice(files)
            whole = file.read_bytes()
            data = bytearray(whole)
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            file.write_bytes(data)
            assert is_found(path), (file.name, bytes(data))
            file.write_bytes(whole)
            tried += 1
        assert verify(path).passed
    row(f"{tried:,} single bits flipped in models, in one file and in shards", "each found, by the name of the file")

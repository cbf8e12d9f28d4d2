import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lwptv_lightning import MergeRecipe, save_merged
from lwptv_lightning.checkpoints import payload_problem, write_safetensors


def test_any_bit_of_the_tensors_that_changed_is_found(tmp_path):
    path = write_safetensors({"w": torch.ones(3), "e": torch.ones(0)}, tmp_path / "m.safetensors", {"about": "it"})
    raw = path.read_bytes()
    assert payload_problem(path) is None
    for place in range(len(raw) - 12, len(raw)):
        for bit in range(8):
            path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :])
            assert "not those that were written" in payload_problem(path)


def test_any_bit_of_the_header_that_changed_is_found(tmp_path):
    path = write_safetensors({"w": torch.ones(3, 2)}, tmp_path / "m.safetensors", {"about": "it"})
    raw = path.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    for place in range(header):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
        assert payload_problem(path), place


def test_a_header_that_another_program_wrote_is_not_the_one_that_was_written(tmp_path):
    path = write_safetensors({"w": torch.ones(3)}, tmp_path / "m.safetensors", {"about": "it"})
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file({"w": torch.ones(3)}, path, about)
    assert "its header is not the one that was written" in payload_problem(path)


@pytest.mark.parametrize("shard_size", ["5GB", 64])
def test_each_file_of_a_model_has_a_checksum(shard_size, vectors, tmp_path):
    save_merged(vectors, MergeRecipe(), tmp_path / "m.safetensors", max_shard_size=shard_size)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size == 64)
    assert [payload_problem(path) for path in files] == [None] * len(files)


def test_a_file_without_a_checksum_says_so(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors")
    assert "no checksum" in payload_problem(tmp_path / "m.safetensors")


@pytest.mark.parametrize("content", [b"", b"12345678", b"\xff" * 100])
def test_what_is_no_safetensors_file_is_a_problem(content, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(content)
    assert "no readable safetensors file" in payload_problem(tmp_path / "m.safetensors")


def test_a_file_that_is_absent_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        payload_problem(tmp_path / "m.safetensors")

import os

import pytest
import torch

from lwptv_lightning.checkpoints import CheckpointError
from lwptv_lightning.checkpoints.mapped import map_bytes, numbers_at
from lwptv_lightning.files import InputFile


def test_bytes_are_read_as_the_numbers_that_they_are(tmp_path):
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(24)))
    data = map_bytes(InputFile.at(path, CheckpointError))
    assert data.tolist() == list(range(24))
    expected = torch.tensor(list(range(8)), dtype=torch.uint8).view(torch.float64)
    assert torch.equal(numbers_at(data, slice(0, 8), torch.float64), expected)
    askew = torch.tensor(list(range(3, 11)), dtype=torch.uint8).view(torch.float32)
    assert torch.equal(numbers_at(data, slice(3, 11), torch.float32), askew)


def test_an_empty_file(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert len(map_bytes(InputFile.at(tmp_path / "empty", CheckpointError))) == 0


def test_another_file_is_not_mapped_in_the_place_of_the_one_that_was_opened(tmp_path):
    path = tmp_path / "numbers"
    path.write_bytes(bytes(16))
    file = InputFile.at(path, CheckpointError)
    os.truncate(path, 8)
    with pytest.raises(CheckpointError, match=r"numbers: changed .* had 16 bytes and has 8"):
        map_bytes(file)

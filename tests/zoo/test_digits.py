import pytest
import torch

from lwptv_lightning.zoo import base_path, dataset
from lwptv_lightning.zoo.digits import DIGITS_FILE, write_digits


def test_digits_are_real_and_stratified():
    digits = dataset("digits", size=1000)
    assert len(digits) == 300
    assert torch.bincount(digits.labels).tolist() == [30] * 10


def test_shipped_digits_are_what_the_script_writes(tmp_path):
    pytest.importorskip("sklearn")
    write_digits(tmp_path / DIGITS_FILE)
    assert (tmp_path / DIGITS_FILE).stat().st_size == (base_path().parent / DIGITS_FILE).stat().st_size
    assert len(dataset("digits", size=300)) == 300

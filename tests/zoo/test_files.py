import re

import pytest
import torch
from safetensors.torch import load_file

from lwptv_lightning.checkpoints import CheckpointError
from lwptv_lightning.zoo import ID_SETS, OOD_SETS, base_path, create_model, expert_paths, heads
from lwptv_lightning.zoo.domains import set_alphabet
from lwptv_lightning.zoo.glyphs import characters


def test_files_are_within_their_budget():
    assert sum(file.stat().st_size for file in base_path().parent.iterdir()) < 15e6


def test_all_checkpoints_have_the_tensors_of_the_base_in_float16():
    assert tuple(expert_paths()) == ID_SETS
    base = load_file(base_path())
    assert set(base) == set(create_model().state_dict())
    for path in expert_paths().values():
        expert = load_file(path)
        assert {name: tensor.shape for name, tensor in expert.items()} == {n: t.shape for n, t in base.items()}
        assert all(tensor.dtype == torch.float16 and tensor.isfinite().all() for tensor in expert.values())
        assert all(not torch.equal(tensor, base[name]) for name, tensor in expert.items())


@pytest.mark.parametrize("name", ID_SETS + OOD_SETS)
def test_heads_are_frozen_and_have_one_logit_per_class(name):
    head = heads()[name]
    assert head(torch.randn(3, 192)).shape == (3, len(characters(set_alphabet(name))))
    assert not any(parameter.requires_grad for parameter in head.parameters())
    assert tuple(heads()) == ID_SETS + OOD_SETS


def test_missing_file_is_named(tmp_path):
    for read in (base_path, expert_paths, heads):
        with pytest.raises(FileNotFoundError, match="lwptv zoo build"):
            read(tmp_path)


def test_damaged_heads_are_named(tmp_path):
    whole = base_path().with_name("heads.safetensors").read_bytes()
    (tmp_path / "heads.safetensors").write_bytes(whole[:-7])
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "heads.safetensors"))):
        heads(tmp_path)

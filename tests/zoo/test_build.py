"""Building the zoo: complete files, lower loss, the same again from the same seed."""

import pytest
import torch
from safetensors.torch import load_file

from lwptv_lightning.zoo import ID_SETS, base_path, build, create_model, expert_paths, heads


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("zoo") / "new" / "files"
    before = torch.random.get_rng_state()
    build(out, steps=2, expert_steps=1, progress=False)
    assert torch.equal(torch.random.get_rng_state(), before)
    return out


def test_build_writes_the_files_of_the_package(built):
    assert {file.name for file in built.iterdir()} == {file.name for file in base_path().parent.iterdir()}
    assert [entry.name for entry in built.parent.iterdir()] == ["files"]
    assert tuple(expert_paths(built)) == ID_SETS
    create_model().load_state_dict(load_file(base_path(built)))
    assert heads(built)["digits"](torch.randn(1, 192)).shape == (1, 10)


def test_build_repeats_itself(built, tmp_path):
    build(tmp_path, steps=2, expert_steps=1, progress=False)
    for path, again in zip(expert_paths(built).values(), expert_paths(tmp_path).values(), strict=True):
        first, second = load_file(path), load_file(again)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_build_keeps_what_is_there(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="empty folder"):
        build(tmp_path, steps=1, expert_steps=1, progress=False)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"expert_steps": -1}, {"seed": -1}])
def test_wrong_numbers_are_named(wrong, tmp_path):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(tmp_path / "out", progress=False, **wrong)

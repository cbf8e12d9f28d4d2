import pytest
from _helpers.library_folders import SECRETS

from lwptv_lightning import CheckpointError, open_checkpoint
from lwptv_lightning.checkpoints import TensorHeader, write_safetensors
from lwptv_lightning.libraries.beside import (
    PROCESSING,
    belongs_to_a_model,
    code_files,
    configuration,
    processing_files,
)

import torch  # isort: skip

KEPT = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE",
    "spiece.model",
)
LEFT = (*SECRETS, "tokenizer.pt", "vocab.bin", "README.md", "notes.txt", "model.onnx", "rng_state.pth", "token")


@pytest.fixture
def origin(tmp_path):
    write_safetensors({"w": torch.ones(1)}, tmp_path / "base" / "model.safetensors", {})
    return open_checkpoint(tmp_path / "base")


def test_what_tells_how_inputs_are_made_is_copied_and_nothing_else(origin):
    for name in (*KEPT, *LEFT):
        (origin.folder / name).write_text(name)
    (origin.folder / "tokenizer_folder.json").mkdir()
    with pytest.raises(CheckpointError, match=r"tokenizer_folder\.json: expected a regular file"):
        processing_files(origin)
    (origin.folder / "tokenizer_folder.json").rmdir()
    assert processing_files(origin) == {name: name.encode() for name in KEPT}
    assert not any(pattern in ("*", "*.json", "*.model") for pattern in PROCESSING)


def test_a_link_that_leads_away_is_refused(origin, tmp_path):
    (tmp_path / "secret").write_text("SECRET")
    (origin.folder / "vocab.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"'vocab\.json' is a link that leads outside"):
        processing_files(origin)


def test_a_configuration_must_be_an_object(origin):
    assert configuration(origin, "config.json") == {}
    for text in ("[1]", "{", "\x80"):
        (origin.folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            configuration(origin, "config.json")


def test_code_is_named_by_auto_map_alone(origin):
    for name in ("a.py", "b.py", "c.py", "d.py"):
        (origin.folder / name).write_text("from .c import x\nfrom . import a")
    (origin.folder / "c.py").write_text("no python (")
    assert not code_files(origin, {"auto_map": "a.X"})
    assert not code_files(origin, {"auto_map": {"AutoModel": "../a.X", "AutoConfig": ["/etc/a.X", None, 3]}})
    assert code_files(origin, {"auto_map": {"AutoModel": "owner/model--b.X"}}).keys() == {"a.py", "b.py", "c.py"}


def test_what_goes_with_a_model_that_is_replaced_is_of_a_model(tmp_path):
    for name in ("model.safetensors", "config.json", ".metadata", "__0_0.distcp", "README.md", "heads.safetensors"):
        assert belongs_to_a_model(tmp_path / name)
    (tmp_path / ".git").mkdir()
    for name in (".git", "thesis.txt", "train.ckpt", ".env"):
        assert not belongs_to_a_model(tmp_path / name)


def test_in_memory_nothing_stands_beside():
    origin = open_checkpoint({"w": torch.ones(1)})
    assert origin.stored_headers == {"w": TensorHeader((1,), torch.float32)}
    assert not processing_files(origin)
    assert not configuration(origin, "config.json")

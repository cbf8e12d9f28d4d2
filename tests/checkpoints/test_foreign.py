import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, TaskVectors, open_checkpoint

DEEPSPEED = Path(__file__).parents[1] / "data" / "deepspeed_zero"
STATE = {"w": torch.arange(4.0)}


def deepspeed(folder):
    """What DeepSpeed 0.19 wrote, but for its scripts.

    That is ``engine.save_checkpoint(folder)`` after a step of ``deepspeed.initialize`` with ``{"zero_optimization":
    {"stage": 2}}`` on one process; transformers' trainer has the same in its folders.
    """
    shutil.copytree(DEEPSPEED, folder, dirs_exist_ok=True)


def deepspeed_of_lightning(folder):
    (folder / "checkpoint").mkdir()
    (folder / "latest").write_text("checkpoint")
    torch.save({"module": STATE, "buffer_names": []}, folder / "checkpoint" / "mp_rank_00_model_states.pt")


def megatron(folder):
    (folder / "latest_checkpointed_iteration.txt").write_text("10")
    (folder / "iter_0000010" / "mp_rank_00").mkdir(parents=True)
    torch.save(
        {"model": {"language_model": {"embedding": STATE}}},
        folder / "iter_0000010" / "mp_rank_00" / "model_optim_rng.pt",
    )


def written(name, content=b"anything"):
    return lambda folder: (folder / name).write_bytes(content)


FOLDERS = {
    "DeepSpeed ZeRO": [deepspeed, deepspeed_of_lightning],
    "Megatron": [megatron],
    "Orbax": [written("_CHECKPOINT_METADATA"), written("manifest.ocdbt")],
    "Flax": [written("flax_model.msgpack")],
    "Keras or HDF5": [written("tf_model.h5")],
    "of TensorFlow": [written("model.ckpt-10.data-00000-of-00001"), written("saved_model.pb")],
    "ONNX": [written("model.onnx")],
    "GGUF": [written("model-Q4_K_M.gguf", b"GGUF\3\0\0\0")],
}


@pytest.mark.parametrize(("words", "write"), [(words, write) for words, ways in FOLDERS.items() for write in ways])
def test_a_folder_of_another_program_is_refused_by_its_name(words, write, tmp_path):
    write(tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}: this is .*{words}.* which is not read here"):
        open_checkpoint(tmp_path)
    # What can be read goes before what cannot.
    save_file(STATE, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).names == ("w",)


@pytest.mark.parametrize("write", [deepspeed, deepspeed_of_lightning])
def test_the_conversion_of_deepspeeds_folders_is_named(write, tmp_path):
    write(tmp_path)
    (step,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for place in (tmp_path, step, *step.iterdir()):
        with pytest.raises(CheckpointError, match=r"zero_to_fp32\.py.*convert_zero_checkpoint_to_fp32_state_dict"):
            TaskVectors.open(STATE, {"a": place})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model_optim_rng.pt", b"", "Megatron"),
        ("weights.msgpack", b"\x81", "Flax"),
        ("weights.h5", b"", "Keras or HDF5"),
        ("weights", b"\x89HDF\r\n\x1a\n....", "Keras or HDF5"),
        ("model.ckpt-10.index", b"", "of TensorFlow"),
        ("model.ckpt.data-00000-of-00001", b"", "of TensorFlow"),
        ("model.onnx", b"\x08\x07", "ONNX"),
        ("weights.bin", b"GGUF\3\0\0\0", "GGUF"),
        ("model", b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        ("w.npz", b"PK\3\4", "NumPy"),
        ("w", b"\x93NUMPY\1\0", "NumPy"),
    ],
)
def test_a_file_of_another_program_is_refused_by_its_name(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: this is .*{words}"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["weights.h5", "model.onnx", "mp_rank_00_model_states.pt"])
def test_a_file_of_torch_may_be_called_anything(name, tmp_path):
    torch.save(STATE, tmp_path / name)
    assert torch.equal(open_checkpoint(tmp_path / name).read("w"), STATE["w"])


def test_other_files_have_the_errors_that_they_had(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"w\.pt: not a readable checkpoint of torch\.save"):
        open_checkpoint(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        open_checkpoint(tmp_path)

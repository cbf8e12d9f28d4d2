"""Formats of other programs that are not read here: recognised, and refused by their names and with the way out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lwptv_lightning.checkpoints.checkpoint import CheckpointError
from lwptv_lightning.files import InputFile


@dataclass(frozen=True)
class _Foreign:
    """A format by what its files are called and begin with, and what to do about it."""

    what: str
    advice: str
    files: str = "(?!)"
    """A pattern of the whole name of one of its files."""
    folders: tuple[str, ...] = ()
    """Globs of paths in a folder of its kind; one of them that leads to something tells."""
    start: tuple[int, bytes] | None = None
    """Where in a file which bytes stand."""


_FORMATS = (
    _Foreign(
        "a DeepSpeed ZeRO checkpoint, whose weights are divided among the files of its processes",
        "Join them first: `python zero_to_fp32.py . joined` in that folder, or with Lightning "
        "lightning.pytorch.utilities.deepspeed.convert_zero_checkpoint_to_fp32_state_dict(folder, 'joined.ckpt'); then "
        "open what that wrote",
        r"(?:bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+_(?:optim|model)_states\.pt|mp_rank_\d+_model_states\.pt"
        r"|layer_\d+-model(?:_\d+)?-model_states\.pt|zero_to_fp32\.py",
        ("zero_to_fp32.py", "*_model_states.pt", "*_optim_states.pt", "*/*_model_states.pt", "*/*_optim_states.pt"),
    ),
    _Foreign(
        "a checkpoint of Megatron-LM, whose tensors are divided and named in its own way",
        "Convert it to transformers' format with Megatron's tools/checkpoint/convert.py or Megatron-Bridge",
        r"model_optim_rng\.pt|latest_checkpointed_iteration\.txt",
        ("latest_checkpointed_iteration.txt", "mp_rank_*/model_optim_rng.pt", "model_optim_rng.pt"),
    ),
    _Foreign(
        "a checkpoint of Orbax, as JAX programs write",
        "Restore it there and write its arrays to safetensors, by safetensors.flax.save_file",
        r"_CHECKPOINT_METADATA|manifest\.ocdbt",
        ("_CHECKPOINT_METADATA", "manifest.ocdbt", "*/manifest.ocdbt", "ocdbt.process_*"),
    ),
    _Foreign(
        "a Flax checkpoint, of msgpack",
        "Load it in transformers of a version below 5 with from_flax=True and save_pretrained it",
        r".*\.msgpack",
        ("*.msgpack",),
    ),
    _Foreign(
        "a Keras or HDF5 file, of TensorFlow",
        "Load it in transformers of a version below 5 with from_tf=True and save_pretrained it",
        r".*\.(?:h5|hdf5|keras)",
        ("*.h5", "*.keras"),
        (0, b"\x89HDF\r\n\x1a\n"),
    ),
    _Foreign(
        "a checkpoint of TensorFlow",
        "Load it in TensorFlow and write its arrays to safetensors, under the names of the PyTorch model",
        r".*\.ckpt.*\.(?:index|meta|data-\d+-of-\d+)|saved_model\.pb",
        ("*.data-?????-of-?????", "saved_model.pb"),
    ),
    _Foreign(
        "an ONNX graph",
        "It holds a graph and no state dict: give the PyTorch checkpoint that it was exported from",
        r".*\.onnx",
        ("*.onnx",),
    ),
    _Foreign(
        "a GGUF file, of llama.cpp",
        "Load it in transformers with gguf_file=..., which dequantizes it, and save_pretrained it; or give the "
        "checkpoint that it was made from",
        r".*\.(?:gguf|ggml)",
        ("*.gguf",),
        (0, b"GGUF"),
    ),
    _Foreign(
        "a TensorFlow Lite file",
        "Give the PyTorch checkpoint that it was made from",
        r".*\.tflite",
        ("*.tflite",),
        (4, b"TFL3"),
    ),
    _Foreign(
        "an array of NumPy, without the name of a tensor",
        "Write a state dict of torch.from_numpy(...) to safetensors",
        r".*\.np[yz]",
        (),
        (0, b"\x93NUMPY"),
    ),
)
_MOST_START = 16


def require_no_foreign_file(path: Path) -> None:
    """Raise a `CheckpointError` where a file's name or first bytes say that it is in a format that is not read here.

    Example:
        >>> require_no_foreign_file(Path("zero_pp_rank_0_mp_rank_00_optim_states.pt"))
        Traceback (most recent call last):
        lwptv_lightning...CheckpointError: zero_pp_rank_0_mp_rank_00_optim_states.pt: this is a DeepSpeed ZeRO...
    """
    for each in _FORMATS:
        if re.fullmatch(each.files, path.name):
            raise _refusal(path, each)
    with InputFile.at(path, CheckpointError).open() as file:
        start = file.read(_MOST_START)
    for each in _FORMATS:
        if each.start is not None and start[each.start[0] :].startswith(each.start[1]):
            raise _refusal(path, each)


def require_no_foreign_folder(folder: Path) -> None:
    """Raise a `CheckpointError` where what lies in a folder says that it is in a format that is not read here."""
    for each in _FORMATS:
        if any(next(folder.glob(pattern), None) is not None for pattern in each.folders):
            raise _refusal(folder, each)


def _refusal(path: Path, found: _Foreign) -> CheckpointError:
    return CheckpointError(f"{path}: this is {found.what}, which is not read here. {found.advice}.")

"""Open one checkpoint lazily, whatever its format; pickled code is never run.

A `Checkpoint` knows the shape and dtype of every tensor from the file's header and reads a tensor only when asked.
Files are memory-mapped, and reopened by path in another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError
from lwptv_lightning.checkpoints.distributed import (
    HUGGING_FACE_SHARDS,
    METADATA,
    PROCESSES_METADATA,
    _from_distributed,
    _from_hugging_face_shards,
    require_no_distributed_remains,
    require_no_piece,
)
from lwptv_lightning.checkpoints.float8 import dequantized
from lwptv_lightning.checkpoints.foreign import require_no_foreign_file, require_no_foreign_folder
from lwptv_lightning.checkpoints.hub import SCHEMES, fetch
from lwptv_lightning.checkpoints.model_config import ModelConfig
from lwptv_lightning.checkpoints.names import without_wrappers
from lwptv_lightning.checkpoints.safetensors import _from_index, _from_safetensors, weight_map_of
from lwptv_lightning.checkpoints.shards import is_part
from lwptv_lightning.checkpoints.torch_file import LIGHTNING, _from_state_dict, _from_torch_file
from lwptv_lightning.checkpoints.torch_shards import _from_torch_index
from lwptv_lightning.checkpoints.training import require_kind_of_weights
from lwptv_lightning.files import InputFile
from lwptv_lightning.functional import plain_module
from lwptv_lightning.registry import require_kind, shown

CheckpointSource: TypeAlias = "str | Path | Mapping[str, Tensor] | nn.Module | Checkpoint"
"""What can be opened: a file or folder, a state dict, a module, or a checkpoint that is open already."""
_MAIN_FILES = (
    "task_vector.safetensors",
    "adapter_model.safetensors",
    "*.safetensors.index.json",
    "model.safetensors",
    HUGGING_FACE_SHARDS,
    "open_clip_model.safetensors",
    "*.safetensors",
    "adapter_model.bin",
    "*.bin.index.json",
    "pytorch_model.bin",
    METADATA,
    PROCESSES_METADATA,
    f"pytorch_model_fsdp_*/{METADATA}",
)
"""What to open in a folder, most wanted first."""
_TORCH = (".bin", ".pt", ".pth")
"""How torch files end that an index names."""


def open_checkpoint(source: CheckpointSource, prefix: str | None = None, *, ema: bool | None = None) -> Checkpoint:
    """Open a checkpoint of any supported format without reading its tensors.

    Args:
        source: A ``.safetensors`` file; a folder or ``*.index.json`` of sharded safetensors or torch files, such as
            a transformers model; a folder of a sharded run; a file of ``torch.save``, whose pickle is read as data,
            among them Lightning's ``.ckpt``; a name on the hub, ``"hf-hub:owner/model"``; a state dict; a module. A
            state dict or module is copied, so that training it or installing weights into it changes nothing here. An
            open checkpoint is taken as it is.
        prefix: What the names of the wanted tensors start with, to be stripped, such as ``"model."``; ``""`` leaves
            the names as they are. By default a Lightning checkpoint with a single top-level attribute loses that
            prefix, and any checkpoint what `torch.compile`, DistributedDataParallel and torch's ``AveragedModel`` put
            into the names.
        ema: For a training checkpoint, whether to take the averaged weights (True) or the last ones (False). By
            default what it holds as its state dict, which are the averaged ones where Lightning's ``WeightAveraging``
            wrote it; averaged ones, too, where there are no others. Where there are both, the checkpoint's
            ``metadata["weights"]`` says which were taken.

    Returns:
        The open checkpoint.

    Raises:
        FileNotFoundError: There is no such file or folder.
        CheckpointError: The format is not supported, the file is damaged or no regular one, it holds pickled objects,
            or what it names lies outside of its folder; it was changed, then or when a tensor is read; or there are
            no weights of the kind that ``ema`` asks for.
        TypeError: ``source`` is none of the above.

    Example:
        >>> import torch
        >>> checkpoint = open_checkpoint({"weight": torch.ones(2, 3)})
        >>> checkpoint.headers["weight"].shape, checkpoint.read("weight").sum().item()
        ((2, 3), 6.0)
    """
    require_kind("prefix", prefix, str | None, "a text")
    require_kind("ema", ema, bool | None, "true, false or None")
    if isinstance(source, Checkpoint):
        return _part(source, prefix) if prefix else source
    if isinstance(source, nn.Module):
        checkpoint = _from_state_dict(source.state_dict(), type(plain_module(source)).__name__, ema)
        checkpoint = checkpoint.of_model(ModelConfig.of(source))
    elif isinstance(source, Mapping):
        checkpoint = _from_state_dict(source, "state dict", ema)
    elif source == "":
        raise CheckpointError("a checkpoint's path is empty: ''; the working folder is '.'.")
    elif isinstance(source, str) and source.startswith(SCHEMES):
        checkpoint = _from_path(fetch(source), ema)
    elif isinstance(source, str | Path):
        checkpoint = _from_path(Path(source).expanduser(), ema)
    else:
        raise TypeError(f"a checkpoint is a path, a state dict or a module, not {type(source).__name__}.")
    require_kind_of_weights(checkpoint, ema)
    checkpoint = dequantized(checkpoint)
    if prefix is not None:
        return _part(checkpoint, prefix) if prefix else checkpoint
    checkpoint = without_wrappers(checkpoint)
    if checkpoint.format == LIGHTNING:
        heads = {name.partition(".")[0] + "." for name in checkpoint.names}
        if len(heads) == 1 and all("." in name for name in checkpoint.names):
            return without_wrappers(checkpoint.without_prefix(heads.pop()))
    return checkpoint


def _part(checkpoint: Checkpoint, prefix: str) -> Checkpoint:
    """Return the part under a prefix, in whose names or before it `torch.compile` may have put its own."""
    unwrapped = without_wrappers(checkpoint)
    found = any(name.startswith(prefix) for name in checkpoint.names)
    if not found and any(name.startswith(prefix) for name in unwrapped.names):
        checkpoint = unwrapped
    return without_wrappers(checkpoint.without_prefix(prefix))


def _from_path(path: Path, ema: bool | None) -> Checkpoint:
    try:
        found = path.exists()
    except OSError as error:  # a name that is too long, or a folder that may not be looked into
        raise type(error)(f"no checkpoint can be opened at {shown(str(path))}: {error.strerror}.") from error
    if not found:
        raise FileNotFoundError(f"there is no checkpoint at {shown(str(path))}.")
    if path.is_dir():
        return _from_folder(path, ema)
    if path.name == METADATA:
        return _from_distributed([path], ema)
    require_no_piece(path)
    if path.name.endswith(".index.json"):
        return _from_any_index(InputFile.at(path, CheckpointError))
    if path.suffix == ".safetensors":
        return _from_safetensors(path)
    try:
        return _from_torch_file(path, ema)
    except CheckpointError:
        require_no_foreign_file(path)  # only now: a file of torch.save may be called anything
        raise


def _from_any_index(index: InputFile) -> Checkpoint:
    weight_map = weight_map_of(index)
    is_torch = any(shard.endswith(_TORCH) for shard in weight_map.values())
    return (_from_torch_index if is_torch else _from_index)(index, weight_map)


def _from_folder(folder: Path, ema: bool | None) -> Checkpoint:
    for pattern in _MAIN_FILES:
        # A shard without its index is left of a model, and none by itself.
        every = sorted(path for path in folder.glob(pattern) if not is_part(path.name))
        if pattern.endswith(METADATA):  # other programs have folders of that name
            every = [path for path in every if not path.is_dir()]
        # Heads beside a merged model are none by themselves.
        found = [path for path in every if not f".{path.name}".endswith(".heads.safetensors")] or every
        if found and pattern == HUGGING_FACE_SHARDS:
            return _from_hugging_face_shards(folder, found)
        if found and pattern == PROCESSES_METADATA:
            return _from_distributed(found, ema)
        if len(found) == 1:
            return _from_path(found[0], ema)
        if found:
            raise CheckpointError(f"{folder}: several checkpoints ({', '.join(p.name for p in found)}); name one.")
    require_no_distributed_remains(folder)
    require_no_foreign_folder(folder)
    # PEFT writes an adapter that has a name of its own into a folder of that name.
    within = sorted(path.parent.name for path in folder.glob("*/adapter_config.json"))
    hint = f"name the file, or the adapter's own folder, such as {within[0]!r}." if within else "name the file."
    raise CheckpointError(
        f"{folder}: no *.safetensors, *.safetensors.index.json or pytorch_model.bin in this folder; {hint}"
    )

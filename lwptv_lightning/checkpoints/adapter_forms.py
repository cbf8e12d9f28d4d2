"""Tell an adapter from whole weights by the names of its tensors, and which library wrote it in which form.

PEFT's own folders are read; what holds an adapter in another form is refused by the name of that form.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from lwptv_lightning.checkpoints.adapter_config import CONFIG_FILE, has_configuration
from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError

_MERGE = "call merge_and_unload() on the PEFT model and save what that returns, or give the folder of save_pretrained()"


@dataclass(frozen=True)
class _Form:
    """A form in which adapters are written that does not say how to add them to a base.

    Attributes:
        what: What a checkpoint with such names is.
        has: Whether a name is that of a tensor of it, told in time that is proportional to the name's length.
        instead: What to do about it.
    """

    what: str
    has: Callable[[str], object]
    instead: str


_FACTORS = {"lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"}
_FACTORS |= {"trainable_tokens_delta", "ranknum"}
_WRAPPERS = {"base_layer", "original_module", "modules_to_save"}
_KINDS = ("weight", "bias")


def _has_own_name(name: str) -> bool:
    """Whether a name has that of an adapter in it, such as ``default``, which PEFT's files leave out."""
    parts = name.split(".")
    ends = parts[:-1] if parts[-1] in _KINDS else parts
    return len(ends) > 1 and ends[-2] in _FACTORS and ends[-1] not in _KINDS


def _is_of_training(name: str) -> bool:
    """Whether a name has that of an adapter in it, or that of a wrapper within PEFT's own root."""
    parts = name.split(".")
    roots = [at for at, pair in enumerate(pairwise(parts)) if pair == ("base_model", "model")]
    inside = parts[roots[0] + 2 :] if roots else []
    is_default = len(inside) > 1 and "default" in (inside[-1], inside[-2] if inside[-1] in _KINDS else "")
    return _has_own_name(name) or not _WRAPPERS.isdisjoint(inside[:-1]) or is_default


_FORMS = (
    _Form("the weights of a PEFT model in training", _is_of_training, f"which holds no scaling; {_MERGE}."),
    _Form(
        "a LoRA of kohya-ss or LyCORIS",
        re.compile(
            r".*\.(lora_(up|down|mid)\.weight|hada_[wt][12](_[ab])?|lokr_[wt][12](_[ab])?|oft_blocks)"
        ).fullmatch,
        "whose names are not those of a model's tensors; merge it into its base first, with the scripts that wrote it.",
    ),
    _Form(
        "a LoRA of diffusers",
        re.compile(
            r".*[._]lora\.(up|down)\.weight|(unet|transformer|text_encoder(_\d)?)\..*\.lora_[AB]\.weight"
        ).fullmatch,
        "which says nothing of its scaling; merge it into its base first, by fuse_lora() of the pipeline.",
    ),
    _Form(
        "a LoRA of torchtune",
        re.compile(r".*\.lora_[ab]\.weight").fullmatch,
        "which says nothing of its scaling; write it in PEFT's form, or merge it into its base first.",
    ),
)


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds an adapter, such as the factors of LoRA, in whatever form."""
    return (
        any(".lora_" in name for name in checkpoint.names)
        or has_configuration(checkpoint)
        or _foreign_form(checkpoint) is not None
    )


def require_readable_form(adapter: Checkpoint) -> None:
    """Raise a `CheckpointError` where an adapter is in another form than PEFT's ``save_pretrained`` writes."""
    found = None if has_configuration(adapter) else _foreign_form(adapter)
    if found is not None:
        form, name = found
        raise CheckpointError(f"{adapter.source}: {name!r} is of {form.what}, {form.instead}")


def _foreign_form(checkpoint: Checkpoint) -> tuple[_Form, str] | None:
    """Return the form of the first name that no weights of a model and no file of PEFT's have."""
    training, *others = _FORMS
    if checkpoint.folder is not None and (checkpoint.folder / CONFIG_FILE).exists():
        # A file of PEFT's under another name than PEFT's own, whose names may begin as those of diffusers do.
        found = next(filter(_has_own_name, checkpoint.names), None)
        if found is not None or any(".lora_" in name for name in checkpoint.names):
            return None if found is None else (training, found)
    for form in (training, *others):
        for name in checkpoint.names:
            if form.has(name):
                return form, name
    return None

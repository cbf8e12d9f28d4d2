"""Tell an adapter from whole weights by the names of its tensors, and which library wrote it in which form.

PEFT's own folders are read; what holds an adapter in another form is refused by the name of that form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lwptv_lightning.checkpoints.adapter_config import CONFIG_FILE, has_configuration
from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError

_MERGE = "call merge_and_unload() on the PEFT model and save what that returns, or give the folder of save_pretrained()"


@dataclass(frozen=True)
class _Form:
    """A form in which adapters are written that does not say how to add them to a base.

    Attributes:
        what: What a checkpoint with such names is.
        names: Matches the name of a tensor of it.
        instead: What to do about it.
    """

    what: str
    names: re.Pattern[str]
    instead: str


_FORMS = (
    _Form(
        "the weights of a PEFT model in training",
        re.compile(
            r".*(\.|^)(lora_(embedding_)?[AB]|lora_E|lora_magnitude_vector|trainable_tokens_delta|ranknum)"
            r"\.(?!weight$|bias$)[^.]+(\.weight|\.bias)?"
            r"|(.*\.)?base_model\.model\..*\.(base_layer|original_module|modules_to_save)\..+"
            r"|(.*\.)?base_model\.model\..*\.default(\.weight|\.bias)?"
        ),
        f"which holds no scaling; {_MERGE}.",
    ),
    _Form(
        "a LoRA of kohya-ss or LyCORIS",
        re.compile(r".*\.(lora_(up|down|mid)\.weight|hada_[wt][12](_[ab])?|lokr_[wt][12](_[ab])?|oft_blocks)"),
        "whose names are not those of a model's tensors; merge it into its base first, with the scripts that wrote it.",
    ),
    _Form(
        "a LoRA of diffusers",
        re.compile(r".*[._]lora\.(up|down)\.weight|(unet|transformer|text_encoder(_\d)?)\..*\.lora_[AB]\.weight"),
        "which says nothing of its scaling; merge it into its base first, by fuse_lora() of the pipeline.",
    ),
    _Form(
        "a LoRA of torchtune",
        re.compile(r".*\.lora_[ab]\.weight"),
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
    beside = checkpoint.folder is not None and (checkpoint.folder / CONFIG_FILE).exists()
    for form in _FORMS:
        for name in checkpoint.names:
            # Beside a configuration, names of PEFT's are read however they begin.
            if form.names.fullmatch(name) and not (beside and form.what.endswith("diffusers") and ".lora_" in name):
                return form, name
    return None

"""What a library names a tensor in its model that has another name in its file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn


def model_names(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Return, of a checkpoint's tensors, the names that they have in a library's model, as far as each is one of its.

    A transformers folder may have other names than the model: without the model's own prefix, or those of an earlier
    version. transformers' own renaming tells. Tensors that it combines with others, such as a mixture's experts, have
    no name there.

    Example:
        >>> model_names(nn.Linear(1, 1), ["weight", "scale"])
        {'weight': 'weight'}
    """
    own = model.state_dict()
    found = {name: name for name in names if name in own}
    if len(found) < len(names) and (prefix := getattr(model, "base_model_prefix", None)) is not None:
        renamed = _renamer(model, prefix, own)
        others = {name: renamed(name) for name in names if name not in found}
        taken = set(found.values())
        found |= {name: new for name, new in others.items() if new in own and new not in taken}
    return found


def named_as(names: Sequence[str], wanted: Sequence[str], model: nn.Module) -> dict[str, str]:
    """Return names of one file of a library's model to those that another file has for the same tensors.

    Example:
        >>> named_as(["weight"], ["weight", "bias"], nn.Linear(1, 1))
        {'weight': 'weight'}
    """
    theirs = {own: name for name, own in model_names(model, wanted).items()}
    return {name: theirs[own] for name, own in model_names(model, names).items() if own in theirs}


def _renamer(model: Any, prefix: str, own: dict[str, Any]) -> Callable[[str], str | None]:
    try:
        from transformers import conversion_mapping, core_model_loading

        entries = conversion_mapping.get_model_conversion_mapping(model)
        renamings = [each for each in entries if isinstance(each, core_model_loading.WeightRenaming)]
        converters = [each for each in entries if isinstance(each, core_model_loading.WeightConverter)]

        def renamed(name: str) -> str | None:
            new, combined = core_model_loading.rename_source_key(name, renamings, converters, prefix, own)
            return new if combined is None else None
    except (ImportError, AttributeError):  # of an earlier version, which renames prefixes alone

        def renamed(name: str) -> str | None:
            longer, shorter = f"{prefix}.{name}", name.removeprefix(f"{prefix}.")
            return longer if longer in own else shorter

    return renamed

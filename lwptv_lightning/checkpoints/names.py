"""Bring a checkpoint to the tensor names of a reference, whichever library wrote it.

timm's own ``checkpoint_filter_fn`` comes first; the maps below serve where it has none or no model is at hand. A map is
a plain function from state dict to state dict, which `lwptv_lightning.checkpoints.convert` runs without reading.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, TensorHeader
from lwptv_lightning.checkpoints.conversion import convert
from lwptv_lightning.checkpoints.prefixes import align_prefix, count_prefixes

_OPEN_CLIP_SWAPS = (
    ("conv1.", "patch_embed.proj."),
    ("transformer.resblocks.", "blocks."),
    ("ln_pre.", "norm_pre."),
    ("ln_post.", "norm."),
    ("ln_", "norm"),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)
_TRANSFORMERS_SWAPS = (
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("encoder.layers.", "blocks."),
    ("pre_layrnorm.", "norm_pre."),  # their spelling
    ("post_layernorm.", "norm."),
    ("layer_norm", "norm"),
    ("self_attn.out_proj.", "attn.proj."),
)
_QKV = re.compile(r"(?P<block>.*)self_attn\.q_proj\.(?P<kind>weight|bias)")


def match_names(
    checkpoint: Checkpoint, reference: Mapping[str, TensorHeader], model: nn.Module | None = None
) -> Checkpoint:
    """Return a checkpoint under the names of a reference, as far as one of the known ways leads there.

    Args:
        checkpoint: Of the reference's architecture, as any library wrote it.
        reference: The wanted names, with their shapes.
        model: The reference's module, whose timm converter is used and whose activation is compared.

    Returns:
        The checkpoint itself, a part of it without a prefix, or a converted one: what has most of the wanted tensors.

    Raises:
        CheckpointError: The weights were trained with another activation than the model's, or several prefixes lead
            to the names.
    """
    direct = align_prefix(checkpoint, reference)
    if model is not None:
        _check_activation(checkpoint, model)
    # Where the names are known, what is amiss is an error to report and not a reason to look for another format.
    if 2 * _hits(direct, reference) >= min(len(direct.names), len(reference)):
        return direct
    candidates = [direct, *_conversions(checkpoint, reference, model)]
    best = max(candidates, key=lambda candidate: _hits(candidate, reference))
    return best if best is direct else _without_foreign_head(best, reference)


def open_clip_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the image encoder of OpenAI's CLIP or of open_clip, ``visual.*``, to timm's ViT.

    Example:
        >>> list(open_clip_to_timm({"visual.ln_pre.bias": torch.zeros(2), "logit_scale": torch.ones(())}))
        ['norm_pre.bias']
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith("visual."):
            continue
        name = _swap(name.removeprefix("visual."), _OPEN_CLIP_SWAPS)
        if name == "proj":
            converted |= _head(tensor.transpose(0, 1))
        elif name == "class_embedding":
            converted["cls_token"] = tensor.reshape(1, 1, -1)
        elif name == "positional_embedding":
            converted["pos_embed"] = tensor.unsqueeze(0)
        else:
            converted[name] = tensor
    return converted


def transformers_clip_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the vision model of transformers' CLIP, with its prefix ``vision_model.``, to timm's ViT.

    Queries, keys and values become one tensor.

    Example:
        >>> list(transformers_clip_to_timm({"vision_model.pre_layrnorm.bias": torch.zeros(2)}))
        ['norm_pre.bias']
    """
    vision = {
        name.removeprefix("vision_model."): tensor for name, tensor in state.items() if name.startswith("vision_model.")
    }
    converted = _head(state["visual_projection.weight"]) if "visual_projection.weight" in state else {}
    for name, tensor in vision.items():
        if name.endswith("position_ids") or re.search(r"self_attn\.[kv]_proj\.", name):
            continue
        if match := _QKV.fullmatch(name):
            block, kind = match["block"], match["kind"]
            parts = [vision[f"{block}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            converted[_swap(f"{block}attn.qkv.{kind}", _TRANSFORMERS_SWAPS)] = torch.cat(parts)
        elif name == "embeddings.class_embedding":
            converted["cls_token"] = tensor.reshape(1, 1, -1)
        elif name == "embeddings.position_embedding.weight":
            converted["pos_embed"] = tensor.unsqueeze(0)
        else:
            converted[_swap(name, _TRANSFORMERS_SWAPS)] = tensor
    return converted


def _conversions(
    checkpoint: Checkpoint, reference: Mapping[str, TensorHeader], model: nn.Module | None
) -> Iterable[Checkpoint]:
    if prefix := _missing_prefix(checkpoint, reference):
        yield checkpoint.renamed({prefix + name: name for name in checkpoint.names})
    normalised = _normalised(checkpoint)
    timms = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    functions: list[Callable[[dict[str, Tensor]], Mapping[str, Tensor]]] = []
    if timms is not None:
        functions.append(lambda state: timms(state, model))
    functions += [open_clip_to_timm, transformers_clip_to_timm]
    for function in functions:
        try:
            yield convert(normalised, function)
        except Exception:
            continue


def _normalised(checkpoint: Checkpoint) -> Checkpoint:
    """Bring a CLIP checkpoint's image encoder under the prefix that its library gives it in the whole model."""
    for mark, standard in (("embeddings.class_embedding", "vision_model."), ("class_embedding", "visual.")):
        roots = [name.removesuffix(mark) for name in checkpoint.names if f".{name}".endswith(f".{mark}")]
        if len(roots) == 1:
            return checkpoint.renamed(_reroot(checkpoint.names, roots[0], standard))
    return checkpoint


def _reroot(names: Sequence[str], root: str, standard: str) -> dict[str, str]:
    """Map new names to old: an encoder under ``root`` comes under ``standard``, what stands beside it likewise."""
    encoder = {standard + name.removeprefix(root): name for name in names if name.startswith(root)}
    parent = root.removesuffix(standard)
    beside = {name.removeprefix(parent): name for name in names if not name.startswith(root)}
    return beside | encoder


def _missing_prefix(checkpoint: Checkpoint, reference: Iterable[str]) -> str:
    """Return the prefix under which the reference has most of a checkpoint's names; empty where it has none."""
    covered = count_prefixes(reference, set(checkpoint.names))
    return covered.most_common(1)[0][0] if covered else ""


def _hits(checkpoint: Checkpoint, reference: Mapping[str, TensorHeader]) -> int:
    return sum(name in reference for name in checkpoint.names)


def _without_foreign_head(checkpoint: Checkpoint, reference: Mapping[str, TensorHeader]) -> Checkpoint:
    """Leave out the projection of a converted CLIP where the reference ends at the features."""
    if any(name.startswith("head.") for name in reference):
        return checkpoint
    return checkpoint.renamed({name: name for name in checkpoint.names if not name.startswith("head.")})


def _swap(name: str, swaps: Iterable[tuple[str, str]]) -> str:
    for old, new in swaps:
        name = name.replace(old, new)
    return name


def _head(weight: Tensor) -> dict[str, Tensor]:
    """Return timm's classifier for a CLIP projection, which has no bias."""
    return {"head.weight": weight, "head.bias": torch.zeros(weight.shape[0])}


def _check_activation(checkpoint: Checkpoint, model: nn.Module) -> None:
    trained_with = _activation(checkpoint)
    present = {type(module).__name__.lower() for module in model.modules()} & {"gelu", "quickgelu"}
    if trained_with not in ("gelu", "quick_gelu") or not present or trained_with.replace("_", "") in present:
        return
    name = str((getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__)
    if trained_with == "quick_gelu":
        wanted = name.replace("_clip_", "_clip_quickgelu_") if "_clip_" in name else "*_clip_quickgelu_224"
    else:
        wanted = name.replace("_quickgelu", "")
    raise CheckpointError(
        f"{checkpoint.source}: these weights were trained with {trained_with}, but {name} computes "
        f"{' and '.join(sorted(present))} and would give other features; build timm's {wanted} instead."
    )


def _activation(checkpoint: Checkpoint) -> str | None:
    """Return the activation that a checkpoint's configuration names, or None where it says nothing."""
    if "input_resolution" in checkpoint.names:  # only OpenAI's own files hold this
        return "quick_gelu"
    if checkpoint.folder is None:
        return None
    transformers = _json(checkpoint.folder / "config.json")
    named = transformers.get("vision_config", transformers).get("hidden_act")
    if named is None and _json(checkpoint.folder / "open_clip_config.json").get("model_cfg", {}).get("quick_gelu"):
        return "quick_gelu"
    return None if named is None else str(named)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

"""Bring a checkpoint to the tensor names of a reference, whichever library wrote it and whatever wraps the model.

timm's own ``checkpoint_filter_fn`` comes first; the maps below serve where it has none or no model is at hand. A map is
a plain function from state dict to state dict, which `lwptv_lightning.checkpoints.convert` runs without reading.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, TensorHeader
from lwptv_lightning.checkpoints.conversion import convert
from lwptv_lightning.checkpoints.library_names import model_names
from lwptv_lightning.checkpoints.model_config import StatedHead
from lwptv_lightning.files import InputFile
from lwptv_lightning.functional import plain_name
from lwptv_lightning.registry import parse_json

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
_WRAPPED = re.compile(r"(?:module\.)*")
_AVERAGED_COUNT = "n_averaged"
_QKV = re.compile(r"(?P<block>.*)self_attn\.q_proj\.(?P<kind>weight|bias)")


def without_wrappers(checkpoint: Checkpoint) -> Checkpoint:
    """Take out of the names what wrappers put in: ``_orig_mod`` anywhere, ``module.`` where all begin with it.

    The counter of torch's AveragedModel, which stands beside these, is left out with it.
    """
    old_names = {plain_name(name): name for name in checkpoint.names}
    if is_averaged_model(old_names):
        del old_names[_AVERAGED_COUNT]
    wrapped = min((_WRAPPED.match(name).end() for name in old_names), default=0)  # type: ignore[union-attr]
    old_names = {name[wrapped:]: old for name, old in old_names.items()}
    return checkpoint if tuple(old_names) == checkpoint.names else checkpoint.renamed(old_names)


def is_averaged_model(names: Collection[str]) -> bool:
    """Whether tensors are those of torch's AveragedModel, by their names: a counter and all else in ``module``.

    Example:
        >>> is_averaged_model(["n_averaged", "module.weight"]), is_averaged_model(["module.weight"])
        (True, False)
    """
    rest = [name for name in names if name != _AVERAGED_COUNT]
    return len(names) - 1 == len(rest) > 0 and all(name.startswith("module.") for name in rest)


def _count_prefixes(headers: Mapping[str, TensorHeader], known: Collection[str]) -> Counter[str]:
    """Count, for each prefix that some names have, how many of them are known without it, in the same shape."""
    covered: Counter[str] = Counter()
    lengths = set(map(len, known))
    for name, header in headers.items():
        for dot in re.finditer(r"\.", name):
            # Names may have so many parts that looking each rest up would take long.
            if len(name) - dot.end() not in lengths:
                continue
            rest = name[dot.end() :]
            if rest in known and (not isinstance(known, Mapping) or known[rest].shape == header.shape):
                covered[name[: dot.end()]] += 1
    return covered


def align_prefix(checkpoint: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """Strip the prefix under which a checkpoint, such as a whole LightningModule's, holds most of a model's names.

    It stays as it is where some name is known already or no prefix leads to one.

    Raises:
        CheckpointError: Several prefixes do, such as those of a teacher and a student, of which one may lack some.
    """
    wanted = names if isinstance(names, Mapping) else set(names)
    if any(name in wanted for name in checkpoint.names):
        return checkpoint
    if not (found := _likely_prefixes(checkpoint.headers, wanted)):
        return checkpoint
    if len(found) > 1:
        raise CheckpointError(
            f"{checkpoint.source}: the model's tensors stand under several prefixes, "
            f"{', '.join(map(repr, sorted(found)))}; name one with prefix=..."
        )
    return checkpoint.without_prefix(found[0])


def _likely_prefixes(headers: Mapping[str, TensorHeader], known: Collection[str]) -> list[str]:
    """Return the prefix under which most tensors are known, and others under which more than half as many are.

    Where shapes are known and none fits, names alone count: what is amiss is told later.
    """
    covered = (_count_prefixes(headers, known) or _count_prefixes(headers, set(known))).most_common()
    return [
        prefix
        for prefix, count in covered
        # A prefix within the first one is of a part that is built as the whole is.
        if prefix == covered[0][0] or (2 * count > covered[0][1] and not prefix.startswith(covered[0][0]))
    ]


def match_names(
    checkpoint: Checkpoint, reference: Mapping[str, TensorHeader], model: nn.Module | None = None
) -> Checkpoint:
    """Return a checkpoint under the names of a reference, as far as one of the known ways leads there.

    That is the checkpoint itself, a part of it without a prefix, or a converted one: what has most of the wanted
    tensors. Of the reference's module, if given, timm's converter is used and the activation compared.
    """
    direct = align_prefix(checkpoint, reference)
    if model is not None:
        _check_activation(checkpoint, model)
        direct = _named_by_its_library(direct, reference, model)
    # Where the names are known, what is amiss is an error to report and not a reason to look for another format.
    if 2 * _hits(direct, reference) >= min(len(direct.names), len(reference)):
        return direct
    candidates = [direct, *_conversions(checkpoint, reference, model)]
    best = max(candidates, key=lambda candidate: _hits(candidate, reference))
    if len(under := _likely_prefixes(reference, checkpoint.headers)) > 1 and best.names[0].startswith(tuple(under)):
        raise CheckpointError(
            f"{checkpoint.source}: its tensors would fit at several places of the model, "
            f"{', '.join(map(repr, sorted(under)))}; open it for the one that is meant: model=model.get_submodule(...)."
        )
    if best is direct or any(name.startswith("head.") for name in reference):
        return best
    # The reference ends at the features, which a converted CLIP projects.
    return best.renamed({name: name for name in best.names if not name.startswith("head.")})


def _named_by_its_library(
    checkpoint: Checkpoint, reference: Mapping[str, TensorHeader], model: nn.Module
) -> Checkpoint:
    """Return a checkpoint under the names that a transformers model gives it, where more of them are known.

    Since its version 5 files keep the names of earlier versions.
    """
    hits = _hits(checkpoint, reference)
    if not hasattr(model, "base_model_prefix") or hits == len(checkpoint.names):
        return checkpoint
    own = model_names(model, checkpoint.names)
    renamed = checkpoint.renamed({own.get(name, name): name for name in checkpoint.names})
    return renamed if _hits(renamed, reference) > hits else checkpoint


def open_clip_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the image encoder of OpenAI's CLIP or of open_clip, ``visual.*``, to timm's ViT."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "visual.proj":
            converted |= _head(tensor.transpose(0, 1))
        elif name.startswith("visual."):
            converted |= _named_by_timm(name.removeprefix("visual."), tensor, _OPEN_CLIP_SWAPS)
    return converted


def transformers_clip_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the vision model of transformers' CLIP to timm's ViT; queries, keys and values become one tensor."""
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
            converted |= _named_by_timm(f"{block}attn.qkv.{kind}", torch.cat(parts), _TRANSFORMERS_SWAPS)
        else:
            converted |= _named_by_timm(name, tensor, _TRANSFORMERS_SWAPS)
    return converted


def _conversions(
    checkpoint: Checkpoint, reference: Mapping[str, TensorHeader], model: nn.Module | None
) -> Iterable[Checkpoint]:
    # The reference may have most of the names under a prefix.
    for prefix in _likely_prefixes(reference, checkpoint.headers)[:1]:
        yield checkpoint.renamed({prefix + name: name for name in checkpoint.names})
    normalised = _normalised(checkpoint)
    maps: list[Callable[[dict[str, Tensor]], Mapping[str, Tensor]]] = [open_clip_to_timm, transformers_clip_to_timm]
    timms = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    if timms is not None:
        maps.insert(0, lambda state: timms(state, model))
    for function in maps:
        try:
            yield convert(normalised, function)
        except Exception:
            continue


def _normalised(checkpoint: Checkpoint) -> Checkpoint:
    """Bring a CLIP checkpoint's image encoder under the prefix that its library gives it in the whole model."""
    for mark, standard in (("embeddings.class_embedding", "vision_model."), ("class_embedding", "visual.")):
        roots = [name.removesuffix(mark) for name in checkpoint.names if f".{name}".endswith(f".{mark}")]
        if len(roots) == 1:
            # What stands beside the encoder loses the prefix of the whole model.
            root, parent = roots[0], roots[0].removesuffix(standard)
            beside = {name.removeprefix(parent): name for name in checkpoint.names if not name.startswith(root)}
            encoder = {standard + name.removeprefix(root): name for name in checkpoint.names if name.startswith(root)}
            return checkpoint.renamed(beside | encoder)
    return checkpoint


def _hits(checkpoint: Checkpoint, reference: Mapping[str, TensorHeader]) -> int:
    return sum(name in reference for name in checkpoint.names)


def _named_by_timm(name: str, tensor: Tensor, swaps: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    if name in ("class_embedding", "embeddings.class_embedding"):
        return {"cls_token": tensor.reshape(1, 1, -1)}
    if name in ("positional_embedding", "embeddings.position_embedding.weight"):
        return {"pos_embed": tensor.unsqueeze(0)}
    for old, new in swaps:
        name = name.replace(old, new)
    return {name: tensor}


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
    vision = transformers.get("vision_config", transformers)
    named = vision.get("hidden_act") if isinstance(vision, dict) else None
    open_clips = _json(checkpoint.folder / "open_clip_config.json").get("model_cfg")
    if named is None and isinstance(open_clips, dict) and open_clips.get("quick_gelu"):
        return "quick_gelu"
    return None if named is None else str(named)


def quantization_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the configuration beside a checkpoint says of how its weights are quantized; empty where nothing."""
    found = {} if checkpoint.folder is None else _json(checkpoint.folder / "config.json").get("quantization_config")
    return found if isinstance(found, dict) else {"quant_method": found} if found else {}


def is_quantized(checkpoint: Checkpoint) -> bool:
    """Whether the configuration beside a checkpoint says that weights in it are quantized."""
    return bool(quantization_config(checkpoint))


def stated_head(checkpoint: Checkpoint) -> StatedHead:
    """Return what the configuration beside a checkpoint says of its classifier."""
    return StatedHead() if checkpoint.folder is None else StatedHead.of(_json(checkpoint.folder / "config.json"))


def _json(path: Path) -> dict[str, Any]:
    try:
        file = InputFile.at(path, CheckpointError)
    except OSError:
        return {}
    try:
        content = parse_json(file.text(), "it")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}

"""PEFT's LoRA adapters as task vectors: the product of the two factors, expanded one tensor at a time.

``tau = scaling * B A`` with ``scaling = alpha / r``, or ``alpha / sqrt(r)`` for rsLoRA. Adapters are never merged
factor by factor, which would be a merge of another quantity.

References:
    LoRA https://arxiv.org/abs/2106.09685, rsLoRA https://arxiv.org/abs/2312.03732.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, FunctionReader, TensorHeader, some_of
from lwptv_lightning.checkpoints.patterns import first_endings
from lwptv_lightning.files import InputFile, beside
from lwptv_lightning.registry import parse_json, shown

_ROOT = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?")
_MOST_ALPHA = 1e30
"""Beyond it no product is finite."""
_REFUSED = {
    "use_dora": "DoRA normalises the columns of the sum, which is no product B A",
    "use_qalora": "QA-LoRA pools the inputs",
    "lora_bias": "its factors have biases",
    "alora_invocation_tokens": "it acts on some tokens only",
    "trainable_token_indices": "it replaces single embeddings",
    "target_parameters": "it adapts bare parameters",
}
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that change the base's weights, so that the adapter does not belong to the original base."""


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds the factors of a LoRA adapter."""
    return any(".lora_" in name for name in checkpoint.names)


def expand_adapter(adapter: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Return what a PEFT adapter adds to its base, by the names of the model that it was trained on.

    These are the differences, each computed from its factors when read, and the tensors that were trained whole
    (``modules_to_save`` and biases).
    """
    file = _configuration_file(adapter)
    config = _configuration(adapter, file)
    factors: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in adapter.names:
        if match := _FACTOR.fullmatch(name):
            factors.setdefault(match["module"].removeprefix(_ROOT), {})[match["factor"]] = name
        elif ".lora_" in name:
            raise CheckpointError(f"{adapter.source}: {name!r} is no factor A or B of plain LoRA.")
        else:
            whole[name.removeprefix(_ROOT)] = name
    products = {}
    alphas = _alphas(file.path, config, list(factors))
    for module, names in factors.items():
        if len(names) != 2:
            raise CheckpointError(f"{adapter.source}: {module!r} has one factor only, {some_of(names.values())}")
        products[f"{module}.weight"] = _product(adapter, module, names, config, alphas[module])
    headers = {name: TensorHeader(product.shape, torch.float32) for name, product in products.items()}
    differences = adapter.with_tensors(headers, FunctionReader(partial(_multiply, adapter, products)))
    differences.inputs = (*adapter.inputs, file)
    return differences, adapter.renamed(whole)


@dataclass(frozen=True)
class _Product:
    """How to compute one module's difference."""

    a: str
    b: str
    scaling: float
    shape: tuple[int, ...]
    transposed: bool


def _multiply(adapter: Checkpoint, products: Mapping[str, _Product], name: str) -> Tensor:
    product = products[name]
    # In float64, which neither autocast nor a lowered precision of float32 products rounds further.
    a, b = (adapter.read(factor).double().flatten(1) for factor in (product.a, product.b))
    difference = (b @ a).mul_(product.scaling)
    return difference.T if product.transposed else difference.reshape(product.shape)


def _product(
    adapter: Checkpoint, module: str, names: Mapping[str, str], config: Mapping[str, Any], alpha: float
) -> _Product:
    a, b = adapter.headers[names["A"]].shape, adapter.headers[names["B"]].shape
    if len(a) < 2 or len(b) < 2 or a[0] != b[1] or not a[0] or math.prod(b[2:]) != 1:
        raise CheckpointError(f"{adapter.source}: the factors of {module!r}, {b} and {a}, have no product B A.")
    rank = a[0]
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    # Embeddings and GPT-2's layers keep their weight transposed.
    transposed = "lora_embedding_" in names["A"] or bool(config.get("fan_in_fan_out"))
    shape = (a[1], b[0]) if transposed else (b[0], *a[1:])
    return _Product(names["A"], names["B"], scaling, shape, transposed)


def _configuration_file(adapter: Checkpoint) -> InputFile:
    if adapter.folder is None:
        factor = next(name for name in adapter.names if ".lora_" in name)
        raise CheckpointError(
            f"{adapter.source}: {factor!r} is a factor of LoRA, whose scaling stands in an adapter_config.json, and "
            "weights in memory have none beside them; give the adapter's folder instead."
        )
    origin = adapter.inputs[0].path if adapter.inputs else None
    try:
        path = beside(adapter.folder, "adapter_config.json", CheckpointError, origin=origin)
        return InputFile.at(path, CheckpointError)
    except (OSError, ValueError) as error:
        raise _unreadable(adapter, error) from error


def _unreadable(adapter: Checkpoint, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{adapter.source}: holds LoRA factors, whose scaling stands in an adapter_config.json beside them that "
        f"cannot be read ({error})."
    )


def _configuration(adapter: Checkpoint, file: InputFile) -> dict[str, Any]:
    path = file.path
    try:
        config: dict[str, Any] = parse_json(file.text(), "it")
    except (OSError, ValueError) as error:
        raise _unreadable(adapter, error) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a mapping of options, not {shown(config)}.")
    _check_numbers(path, config)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {config.get('peft_type')!r}, expected 'LORA'.")
    for option, reason in _REFUSED.items():
        if config.get(option):
            raise CheckpointError(f"{path}: {option} is not supported, because {reason}; merge it into its base first.")
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(_BASE_CHANGING):
        raise CheckpointError(
            f"{path}: init_lora_weights={start!r} changed the base's weights, so the adapter does not fit the original "
            "base; convert it to plain LoRA or merge it into its base first."
        )
    return config


def _check_numbers(path: Path, config: Mapping[str, Any]) -> None:
    """Raise a `CheckpointError` where the scaling cannot be computed from a configuration."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(
            f"{path}: alpha_pattern must map patterns of modules to numbers, not be {shown(patterns)}."
        )
    alphas = {"lora_alpha": config.get("lora_alpha", 8)} | {
        f"alpha_pattern of {key!r}": patterns[key] for key in patterns
    }
    for what, alpha in alphas.items():
        if type(alpha) not in (int, float) or not -_MOST_ALPHA < alpha < _MOST_ALPHA:
            raise CheckpointError(f"{path}: {what} must be a number, not {shown(alpha)}.")


def _alphas(path: Path, config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, float]:
    """Return each module's alpha: that of the first pattern that ends its path, as PEFT does, or the common one."""
    patterns = config.get("alpha_pattern") or {}
    try:
        found = first_endings(list(patterns), modules)
    except ValueError as error:
        raise CheckpointError(f"{path}: alpha_pattern has {error}.") from error
    common = config.get("lora_alpha", 8)
    return {
        module: common if pattern is None else patterns[pattern] for module, pattern in zip(modules, found, strict=True)
    }

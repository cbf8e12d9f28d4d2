"""PEFT's LoRA adapters as task vectors: what they add to their base, expanded one tensor at a time.

``tau = scaling * B A`` with ``scaling = alpha / r``, or ``alpha / sqrt(r)`` for rsLoRA. Adapters are never merged
factor by factor, which would be a merge of another quantity. What is computed is what PEFT's ``merge_and_unload`` does.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lwptv_lightning.checkpoints.adapter_changes import Change
from lwptv_lightning.checkpoints.adapter_config import AdapterConfig
from lwptv_lightning.checkpoints.adapter_expansion import Expansion, is_copy
from lwptv_lightning.checkpoints.adapter_forms import require_readable_form
from lwptv_lightning.checkpoints.adapter_home import Ties, home_of
from lwptv_lightning.checkpoints.adapter_names import AdapterNames
from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, FunctionReader, TensorHeader, some_of
from lwptv_lightning.registry import printable


def expand_adapter(
    adapter: Checkpoint, bases: Sequence[Checkpoint], modules: Sequence[nn.Module], find_ties: Ties
) -> tuple[Checkpoint, Checkpoint]:
    """Return what a PEFT adapter adds to its base, by the names of the base.

    These are the differences, each computed from its factors when read, and the tensors that were trained whole
    (``modules_to_save`` and biases).

    Args:
        adapter: The adapter.
        bases: The base under the names that are merged, and under those of its file.
        modules: Modules that the base is, or is loaded into; they tell what names and shapes do not.
        find_ties: Finds the ties of a base, of which it may lack some names.

    Raises:
        CheckpointError: It is none that PEFT's ``save_pretrained`` writes, is damaged, or is of a kind that is no
            linear change of the base's weights.
    """
    require_readable_form(adapter)
    config = AdapterConfig.beside(adapter)
    names = AdapterNames.of(adapter)
    home = home_of(names, bases, modules, find_ties)
    expansion = Expansion(adapter, config, home, names)
    changes = expansion.changes()
    replaced = adapter.renamed(_whole(adapter, expansion))
    _require_one_shape(adapter, changes, replaced)
    added = {name: changes.pop(name) for name in list(changes) if name in replaced.headers}
    differences = adapter.with_tensors(_headers(changes), FunctionReader(partial(_sum, adapter, home.base, changes)))
    differences.inputs = (*adapter.inputs, config.file)
    if added:
        reader = FunctionReader(partial(_read, adapter, replaced, added))
        replaced = replaced.with_tensors({**replaced.headers, **_headers(added)}, reader)
    return differences, replaced


def _require_one_shape(adapter: Checkpoint, changes: Mapping[str, Sequence[Change]], replaced: Checkpoint) -> None:
    for name, parts in changes.items():
        whole = replaced.headers.get(name)
        shapes = dict.fromkeys([part.shape for part in parts] + ([] if whole is None else [whole.shape]))
        if len(shapes) > 1:
            raise CheckpointError(
                f"{adapter.source}: what is to become of {name!r} has several shapes, {', '.join(map(str, shapes))}."
            )


def _headers(changes: Mapping[str, Sequence[Change]]) -> dict[str, TensorHeader]:
    return {name: TensorHeader(parts[0].shape, torch.float32) for name, parts in changes.items()}


def _sum(adapter: Checkpoint, base: Checkpoint, changes: Mapping[str, Sequence[Change]], name: str) -> Tensor:
    """Return all that is added to a tensor."""

    def start() -> Tensor:
        return base.read(name).double()

    first, *others = (change.difference(adapter, start) for change in changes[name])
    return sum(others, first)


def _read(adapter: Checkpoint, whole: Checkpoint, changes: Mapping[str, Sequence[Change]], name: str) -> Tensor:
    """Return a tensor that is saved whole, with what is added to it."""
    if name not in changes:
        return whole.read(name)
    return (whole.read(name).double() + _sum(adapter, whole, changes, name)).float()


def _whole(adapter: Checkpoint, expansion: Expansion) -> dict[str, str]:
    """Return the tensors that were trained whole, by the base's names, each with its name in the adapter."""
    base = expansion.home.base
    found: dict[str, str] = {}
    for name, stored in expansion.names.whole.items():
        name = expansion.home.rename(name)
        tied = [group for group in expansion.ties if name in group]
        is_base = "base_layer" in stored.split(".")
        # PEFT saves embeddings as they are in the base, too; such a copy is no change.
        if (is_base or tied) and any(is_copy(adapter, stored, base, each) for each in {name}.union(*tied)):
            continue
        if not is_base:
            _warn_of_ties(adapter, expansion, name)
        every = {each for each in {name}.union(*tied) if is_base and each in base.headers}
        found |= dict.fromkeys(sorted(every) or [name], stored)
    return found


def _warn_of_ties(adapter: Checkpoint, expansion: Expansion, name: str) -> None:
    """Warn of a weight that was trained whole where the base's file lacks its other names, which PEFT leaves."""
    path = "." + name.rpartition(".")[0]
    saved = any(path.endswith(f".{module}") for module in expansion.config.names("modules_to_save"))
    # PEFT loads what else is in the file into the base, under all its names.
    if not saved or expansion.config.options.get("ensure_weight_tying"):
        return
    headers = expansion.home.base.headers
    for group in expansion.home.tied_by_description:
        lacking = [each for each in group if each not in headers and each not in expansion.names.whole]
        if name in group and lacking:
            warnings.warn(
                printable(
                    f"{adapter.source}: {name!r} was trained whole, and PEFT leaves {some_of(lacking)[:-1]} as the "
                    "base has it. The base's file holds both as one, so that a merged file changes both. "
                    "Give the base as a module to keep them apart."
                ),
                stacklevel=2,
            )

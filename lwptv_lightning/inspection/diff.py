"""``lwptv diff``: where two checkpoints differ, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn

from lwptv_lightning.checkpoints import CheckpointSource, compare_headers
from lwptv_lightning.inspection.tables import cell
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.registry import printable_name, steps_of
from lwptv_lightning.task_vectors import align, differs, quantized_by


@dataclass(frozen=True)
class LayerDifference:
    """How one layer of two checkpoints differs.

    Attributes:
        layer: Its name.
        tensors: How many tensors it has in either checkpoint.
        changed: How many of these differ.
        norm: Norm of the difference relative to the first checkpoint's, over the floating and complex tensors that both
            have, but for quantized ones.
        largest: Largest absolute difference of these.
        note: Tensors that only one has, or that have other shapes or kinds, and quantized ones that differ.
    """

    layer: str
    tensors: int
    changed: int
    norm: float
    largest: float
    note: str = ""


def diff(
    first: CheckpointSource,
    second: CheckpointSource,
    granularity: str = "module",
    *,
    model: nn.Module | None = None,
    prefix: str | None = None,
) -> list[LayerDifference]:
    """Compare two checkpoints, one tensor at a time.

    Args:
        first: Any checkpoint.
        second: Another, also one of another library's names, an adapter or a task vector of the first.
        granularity: What a layer is: ``"block"``, ``"module"`` or ``"tensor"``.
        model: The timm model that the weights belong to; see `lwptv_lightning.TaskVectors.open`.
        prefix: What the wanted names start with.

    Returns:
        Every layer of either checkpoint, in the first one's order.

    Raises:
        CheckpointError: A checkpoint cannot be opened.

    Example:
        >>> diff({"fc.weight": torch.ones(2, 2)}, {"fc.weight": torch.full((2, 2), 1.5)})
        [LayerDifference(layer='fc', tensors=1, changed=1, norm=0.5, largest=0.5, note='')]
    """
    aligned = align(first, {"second": second}, model=model, prefix=prefix)
    ours, theirs = aligned.base, aligned.experts["second"]
    compared = compare_headers(ours.headers, theirs.headers)
    noted = {
        name: f"{printable_name(name)}: {getattr(ours.headers[name], what)} and {getattr(theirs.headers[name], what)}"
        for what, names in (("shape", compared.reshaped), ("dtype", compared.other_kind))
        for name in names
    }
    noted |= {name: f"only the first has {printable_name(name)}" for name in compared.missing}
    noted |= {name: f"only the second has {printable_name(name)}" for name in compared.extra}
    packed = quantized_by(theirs) | quantized_by(ours)
    differences = []
    layers = list(layers_from_names(dict.fromkeys((*ours.names, *theirs.names)), granularity))
    for layer in steps_of(layers, "Comparing", len(layers)):
        notes = [noted[name] for name in layer.tensors if name in noted]
        changed, square, base_square, largest = len(notes), 0.0, 0.0, 0.0
        for name in (name for name in layer.tensors if name not in noted):
            if name not in packed and _is_weight(ours.headers[name].dtype):
                is_other = False
                for base, difference in theirs.differences(name, ours):
                    is_other |= bool((difference != 0).any())
                    square += float(difference.square().sum())
                    base_square += float(base.square().sum())
                    largest = max(largest, float(difference.abs().max()) if difference.numel() else 0.0)
            elif (is_other := differs(name, ours, theirs)) and name in packed:
                by = f" by {packed[name]}" if packed[name] else ""
                notes.append(f"{printable_name(name)}: quantized{by}, whose numbers are not compared")
            changed += is_other
        norm = math.sqrt(square / base_square) if base_square else math.inf if square else 0.0
        differences.append(LayerDifference(layer.name, len(layer.tensors), changed, norm, largest, "; ".join(notes)))
    aligned.require_unchanged()
    return differences


def _is_weight(dtype: torch.dtype) -> bool:
    """Whether numbers of a dtype say how far models are apart; those of counters do not."""
    return dtype.is_floating_point or dtype.is_complex


def diff_table(differences: list[LayerDifference]) -> Table:
    """Return the layers that differ as a table for a terminal, with a last line that counts the others."""
    table = Table(header_style="bold", pad_edge=False)
    for heading in ("layer", "changed tensors", "relative norm", "largest", "note"):
        table.add_column(heading, justify="left" if heading in ("layer", "note") else "right", overflow="fold")
    changed = [layer for layer in differences if layer.changed]
    for layer in changed:
        counts = f"{layer.changed} of {layer.tensors}"
        table.add_row(
            cell(printable_name(layer.layer)), counts, f"{layer.norm:.3g}", f"{layer.largest:.3g}", cell(layer.note)
        )
    table.caption = f"{len(differences) - len(changed)} of {len(differences)} layers are equal."
    return table

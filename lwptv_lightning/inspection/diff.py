"""``lwptv diff``: where two checkpoints differ, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.table import Table
from torch import nn

from lwptv_lightning.checkpoints import CheckpointSource, compare_headers
from lwptv_lightning.inspection.tables import cell
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.registry import printable_name
from lwptv_lightning.task_vectors import align


@dataclass(frozen=True)
class LayerDifference:
    """How one layer of two checkpoints differs.

    Attributes:
        layer: Its name.
        tensors: How many tensors it has in either checkpoint.
        changed: How many of these differ.
        norm: Norm of the difference relative to the first checkpoint's, over the tensors that both have.
        largest: Largest absolute difference.
        note: Tensors that only one has, or that have other shapes.
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
        >>> import torch
        >>> diff({"fc.weight": torch.ones(2, 2)}, {"fc.weight": torch.full((2, 2), 1.5)})
        [LayerDifference(layer='fc', tensors=1, changed=1, norm=0.5, largest=0.5, note='')]
    """
    aligned = align(first, {"second": second}, model=model, prefix=prefix)
    ours, theirs = aligned.base, aligned.experts["second"]
    compared = compare_headers(ours.headers, theirs.headers)
    noted = {
        name: f"{printable_name(name)}: {ours.headers[name].shape} and {theirs.headers[name].shape}"
        for name in compared.reshaped
    }
    noted |= {name: f"only the first has {printable_name(name)}" for name in compared.missing}
    noted |= {name: f"only the second has {printable_name(name)}" for name in compared.extra}
    differences = []
    for layer in layers_from_names(dict.fromkeys((*ours.names, *theirs.names)), granularity):
        notes = [noted[name] for name in layer.tensors if name in noted]
        changed, square, base_square, largest = len(notes), 0.0, 0.0, 0.0
        for name in (name for name in layer.tensors if name not in noted):
            differs = False
            for base, difference in theirs.differences(name, ours):
                differs |= bool((difference != 0).any())
                square += float(difference.square().sum())
                base_square += float(base.square().sum())
                largest = max(largest, float(difference.abs().max()) if difference.numel() else 0.0)
            changed += differs
        norm = math.sqrt(square / base_square) if base_square else math.inf if square else 0.0
        differences.append(LayerDifference(layer.name, len(layer.tensors), changed, norm, largest, "; ".join(notes)))
    aligned.require_unchanged()
    return differences


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

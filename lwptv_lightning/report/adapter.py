"""What an adapter holds of a merge, for a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from lwptv_lightning.merging import SavedAdapter
from lwptv_lightning.registry import printable_name

_SOME = 5


def adapter_table(saved: SavedAdapter) -> Table:
    """Return the error of each layer as a table.

    Example:
        >>> from pathlib import Path
        >>> adapter_table(SavedAdapter(Path("adapter"), (), (), (), {}, (), 0.0, "model")).row_count
        0
    """
    table = Table(header_style="bold", pad_edge=False)
    for heading in ("layer", "rank", "norm", "relative error"):
        table.add_column(heading, justify="left" if heading == "layer" else "right", overflow="fold")
    for layer in saved.layers:
        table.add_row(Text(printable_name(layer.name)), str(layer.rank), f"{layer.norm:.3g}", f"{layer.error:.3g}")
    return table


def adapter_summary(saved: SavedAdapter) -> str:
    """Return what is to be said beside `adapter_table`: the whole error, the worst layer, and what is no factor.

    Example:
        >>> from pathlib import Path
        >>> print(adapter_summary(SavedAdapter(Path("adapter"), (), ("norm",), ("cls_token",), {}, (), 0.0, "names")))
        Relative error of all that changed: 0.
        Held whole, as modules of the adapter: norm.
        Held whole, and put into the base itself by PEFT when it loads: cls_token.
        Names and shapes alone told which layers are linear. A model, or its configuration beside the base, is sure.
    """
    lines = [f"Relative error of all that changed: {saved.error:.3g}"]
    if saved.worst is not None:
        lines[0] += f"; the worst layer is {printable_name(saved.worst.name)}, {saved.worst.error:.3g}"
    lines[0] += "."
    if saved.modules:
        lines.append(f"Held whole, as modules of the adapter: {_some(saved.modules)}.")
    if saved.whole:
        lines.append(f"Held whole, and put into the base itself by PEFT when it loads: {_some(saved.whole)}.")
    if saved.dropped:
        lost = [f"{printable_name(name)} ({share:.1%} of the norm)" for name, share in saved.dropped.items()]
        lines.append(f"Dropped: {', '.join(lost)}.")
    if saved.excluded:
        lines.append(f"Not in it, since it was not merged: {_some(saved.excluded)}.")
    if saved.told_by == "names":
        lines.append(
            "Names and shapes alone told which layers are linear. A model, or its configuration beside the base, is "
            "sure."
        )
    return "\n".join(lines)


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SOME} more" if len(names) > _SOME else ""
    return ", ".join(map(printable_name, names[:_SOME])) + more

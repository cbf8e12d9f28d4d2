"""What a command found: plain values for programs, and tables and sentences for people."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from lwptv_lightning.registry import any_character, encodable

if TYPE_CHECKING:
    from rich.table import Table

    from lwptv_lightning.report import ResultTable

Shown: TypeAlias = "str | Table | ResultTable"


@dataclass(frozen=True)
class Result:
    """What a command found.

    Attributes:
        values: What ``--json`` prints, by keys that docs/command_line.md lists.
        shown: What is printed without it, one below the other.
        passed: Whether the command's exit code is 0, and not 1.
    """

    values: Mapping[str, Any]
    shown: Sequence[Shown] = ()
    passed: bool = True


def print_document(values: Mapping[str, Any]) -> None:
    """Print values as one document of JSON on the standard output, and nothing else."""
    print(json.dumps(plain(values), indent=2, allow_nan=False))


def print_shown(shown: Sequence[Shown], *, wide: bool = False) -> None:
    """Print tables and sentences on the standard output; tables no wider than there is room, unless asked for."""
    for each in shown:
        if isinstance(each, str):
            with any_character():
                print(each)
            continue
        from rich.console import Console

        from lwptv_lightning.report import ResultTable, print_table, room_of

        console = Console()
        table = each.rich(wide=wide, width=room_of(console)) if isinstance(each, ResultTable) else each
        print_table(table, console, wide=wide)


def plain(value: Any) -> Any:
    """Return values as JSON has them: what is no finite number is null, what has no other form a text.

    Example:
        >>> from pathlib import Path
        >>> plain({"a": (1, float("nan")), 2: Path("x")})
        {'a': [1, None], '2': 'x'}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {encodable(str(key)): plain(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else encodable(str(value))

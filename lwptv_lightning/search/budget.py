"""How much a search may take: a number of evaluations, or a time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lwptv_lightning.registry import nearest, require_whole, shown

_SECONDS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
_FORMS = "a number of evaluations such as 200, or a time such as 90s, 10min or 2h"


@dataclass(frozen=True)
class Budget:
    """What a search may take: evaluations, each of one candidate on all validation samples, or seconds.

    An evaluation on a part of the samples counts that part.

    Attributes:
        evaluations: How many; ``None`` where time counts.
        seconds: How long; ``None`` where evaluations count.
    """

    evaluations: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, given: Any) -> Budget:
        """Read a budget.

        Args:
            given: A whole number above 0, or a text of one; a time as a text, of one or more parts: ``"1h 30min"``.

        Raises:
            ValueError: It is neither, or nothing.

        Example:
            >>> Budget.of("200"), Budget.of("1.5min").seconds, Budget.of("1h30min").seconds
            (Budget(evaluations=200, seconds=None), 90.0, 5400.0)
        """
        if isinstance(given, Budget):
            return given
        if isinstance(given, int) and not isinstance(given, bool):
            return cls(evaluations=require_whole("budget", given, 1))
        text = given.strip().lower() if isinstance(given, str) else ""
        if re.fullmatch(r"\d{1,15}", text):
            return cls(evaluations=require_whole("budget", int(text), 1))
        parts = re.findall(r"(\d{1,9}(?:\.\d{1,9})?)\s*([a-z]+)\s*", text)
        if not parts or not re.fullmatch(r"(\d{1,9}(\.\d{1,9})?\s*[a-z]+\s*)+", text):
            raise ValueError(f"budget must be {_FORMS}, not {shown(given)}.")
        for _, unit in parts:
            if unit not in _SECONDS:
                raise ValueError(f"budget must be {_FORMS}, not {shown(given)}.{nearest(unit, _SECONDS)}")
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        if not seconds:
            raise ValueError(f"budget must be {_FORMS}, and {shown(given)} is nothing.")
        return cls(seconds=seconds)

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.evaluations} evaluation{'s' * (self.evaluations != 1)}"
        unit, length = next(
            ((name, size) for name, size in (("h", 3600), ("min", 60)) if self.seconds >= size), ("s", 1)
        )
        return f"{self.seconds / length:.4g} {unit}"

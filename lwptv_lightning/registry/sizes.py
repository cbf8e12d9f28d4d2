"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{binary}B": (1024 if binary else 1000) ** power
    for power, prefix in enumerate("KMGT", start=1)
    for binary in ("", "i")
}


def parse_bytes(what: str, value: int | str) -> int:
    """Read a number of bytes.

    Args:
        what: The option's name, for the message.
        value: A whole number, or a number with a unit: ``"512MB"``, ``"1.5GiB"``.

    Raises:
        ValueError: It is neither, or not above 0.

    Example:
        >>> parse_bytes("max_memory", "1.5KiB"), parse_bytes("max_memory", "2 MB")
        (1536, 2000000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(\w*)\s*", str(value))
    units = {name.lower(): size for name, size in _UNITS.items()}
    if isinstance(value, bool) or not match or match[2].lower() not in units or float(match[1]) == 0:
        raise ValueError(f"{what} must be a number of bytes above 0 such as 512MB or 2GiB, not {value!r}.")
    return int(float(match[1]) * units[match[2].lower()])

"""Devices as people name them."""

from __future__ import annotations

from typing import Any

import torch


def device_of(what: str, given: Any) -> torch.device:
    """Return a device from itself, its name or its number; ``what`` is its name in messages.

    Raises:
        TypeError: It is none of these.
        ValueError: There is no kind of device of that name.

    Example:
        >>> device_of("device", "cpu")
        device(type='cpu')
    """
    if not isinstance(given, torch.device | str | int):
        raise TypeError(f"{what} must be a device such as 'cpu' or 'cuda', not a {type(given).__name__}.")
    try:
        return torch.device(given)
    except Exception as error:  # torch has an error for each way to be none
        reason = str(error).partition("\n")[0].partition(" device type at start")[0].rstrip(".")
        name = "of so many digits" if isinstance(given, int) and given.bit_length() > 64 else f"{given!r:.100}"
        # It repeats the name, whose characters are shown as text.
        raise ValueError(f"{what} {name} is none: {_as_text(reason)}.") from error


def require_usable(what: str, given: torch.device | str) -> None:
    """Raise a `ValueError` unless a computation on a device succeeds."""
    try:
        if torch.device(given).type != "cpu":
            torch.zeros(1, device=given).add_(1).item()
    except Exception as error:  # each kind of device fails in its own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        named = f"{what} {str(given)!r:.100}"
        raise ValueError(f"{named} cannot be used: {_as_text(reason)}. Here are {', '.join(here)}.") from error


def _as_text(reason: str) -> str:
    return reason.encode("unicode_escape").decode("ascii")

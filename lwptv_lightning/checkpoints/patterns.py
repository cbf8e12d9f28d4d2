"""Matches texts against a stranger's regular expressions, within bounds of time.

Expressions without repetition and groups take time in proportion to their length. Others can be made to run for ever,
and nothing stops a running match; so another process runs them, which can be stopped. It runs this file, without the
package around it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

_IS_LINEAR = re.compile(r"[^*+?{(]*", re.DOTALL).fullmatch
_MOST_PATTERNS, _MOST_PAIRS = 5_000, 1_000_000
"""What is matched here at most, which takes about a second."""
_REPEATED = re.compile(r"\)[*+?{]|[*+{].*[*+{]", re.DOTALL)
"""A pattern that repeats groups, or more than one thing, takes more than the square of a text's length."""
_SHORT = 200
"""Characters of texts of which this is no matter."""
_SECONDS = 5.0


def first_endings(patterns: Sequence[str], paths: Sequence[str], seconds: float = _SECONDS) -> list[str | None]:
    r"""Return, for each dotted path, the first pattern that ends it after a dot or alone, as PEFT's pattern keys do.

    Raises:
        ValueError: A pattern is none, or they take too long.

    Example:
        >>> first_endings(["q_proj", r"layers\.0\..*"], ["layers.0.q_proj", "layers.0.k_proj", "layers.1.k_proj"])
        ['q_proj', 'layers\\.0\\..*', None]
    """
    is_small = len(patterns) <= _MOST_PATTERNS and len(patterns) * len(paths) <= _MOST_PAIRS
    if is_small and all(map(_IS_LINEAR, patterns)):
        return _first_endings(patterns, paths)
    return _elsewhere("endings", patterns, paths, seconds)


def found_groups(pattern: str, texts: Sequence[str], seconds: float = _SECONDS) -> list[list[str | None] | None]:
    r"""Return, for each text, what the groups of a pattern find in it, or None where it is not found.

    Raises:
        ValueError: The pattern takes too long.

    Example:
        >>> found_groups(r"blocks\.(\d+)\.", ["blocks.3.fc", "head"])
        [['3'], None]
    """
    if _REPEATED.search(pattern) is None and max(map(len, texts), default=0) <= _SHORT:
        return _found_groups(pattern, texts)
    return _elsewhere("groups", pattern, texts, seconds)


def _elsewhere(what: str, patterns: Any, texts: Sequence[str], seconds: float) -> list[Any]:
    """Match in another process, which ends after some seconds."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__],
            input=json.dumps([what, patterns, texts]),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"patterns that take more than {seconds:g} s to match") from error
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"patterns that could not be matched ({error})") from error
    found: list[Any] | str = json.loads(done.stdout)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _found_groups(pattern: str, texts: Sequence[str]) -> list[list[str | None] | None]:
    search = re.compile(pattern).search
    return [None if (match := search(text)) is None else list(match.groups()) for text in texts]


def _first_endings(patterns: Sequence[str], paths: Sequence[str]) -> list[str | None]:
    compiled = []
    for pattern in patterns:
        try:
            re.compile(pattern)  # by itself, so that no bracket in it closes one of ours
            compiled.append((pattern, re.compile(rf"(.*\.)?({pattern})$")))
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{pattern!r}, which is no pattern ({error})") from error
    return [next((pattern for pattern, each in compiled if each.match(path)), None) for path in paths]


def _main() -> None:
    what, patterns, texts = json.load(sys.stdin)
    match: Callable[[Any, Sequence[str]], list[Any]] = _first_endings if what == "endings" else _found_groups
    try:
        found: list[Any] | str = match(patterns, texts)
    except ValueError as error:
        found = str(error)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _main()

"""What people and files give: shown in messages, however large or deep it is, and read from JSON."""

import json
import reprlib
from typing import Any

from lwptv_lightning.registry.text import printable

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 4
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 8
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


class ConfigurationError(ValueError):
    """What a configuration says and cannot be taken, told with the key that it stands under.

    Args:
        key: Where it stands, such as ``"data.id.cats"``.
        problem: What was expected, what came, and what is near.

    Example:
        >>> print(ConfigurationError("data.batch_sise", "unknown key."))
        data.batch_sise: unknown key.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key, self.problem = key, problem

    def __str__(self) -> str:
        return f"{printable(self.key)}: {self.problem}" if self.key else self.problem


def shown(value: Any) -> str:
    """Return a value as messages show it: its `repr`, shortened where it is long or deep.

    Example:
        >>> shown("modul"), shown([[[[[[]]]]]]), shown(10**5000)
        ("'modul'", '[[[[[...]]]]]', 'an int')
    """
    try:
        return printable(" ".join(_SHORT.repr(value).splitlines()))
    except Exception:  # another's `__repr__` may raise anything, and numbers may have too many digits
        kind = type(value).__name__
        return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def require_kind(what: str, value: Any, kinds: Any, expected: str) -> None:
    """Raise a `TypeError` that names what was given, unless it is of some classes; ``expected`` tells them in words.

    Example:
        >>> require_kind("layers", 3, list, "Layers")
        Traceback (most recent call last):
        TypeError: layers must be Layers, not 3.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"{what} must be {expected}, not {shown(value)}.")


def require_texts(what: str, values: Any, expected: str) -> tuple[str, ...]:
    """Return a collection of texts as a tuple, or raise a `TypeError`; one text by itself is no collection here.

    Example:
        >>> require_texts("exclude", "head.*", "globs such as ('head.*',)")
        Traceback (most recent call last):
        TypeError: exclude must be globs such as ('head.*',), not 'head.*'.
    """
    try:
        texts = (None,) if isinstance(values, str | bytes) else tuple(values)
    except TypeError:  # it is no collection
        texts = (None,)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{what} must be {expected}, not {shown(values)}.")
    return texts


def parse_json(text: str | bytes, what: str) -> Any:
    """Return what JSON text holds.

    Args:
        text: The text.
        what: What it should be, for the message.

    Raises:
        ValueError: It is no JSON, a key stands in it twice, or it is nested too deeply to be read.

    Example:
        >>> parse_json('{"rule": "ties", "rule": "dare"}', "a recipe")
        Traceback (most recent call last):
        ValueError: a recipe is no JSON (the key 'rule' is given twice).
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(f"{what} is no JSON that can be read (nested too deeply).") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is no JSON ({str(error).rstrip('.')}).") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} is given twice")
        found[key] = value
    return found

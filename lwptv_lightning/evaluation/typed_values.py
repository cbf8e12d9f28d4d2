"""What jsonargparse says of a value that fits no type, in one sentence: the key, what was expected, what came."""

from __future__ import annotations

import ast
import re

from lwptv_lightning.evaluation.class_paths import accepted, named_object, subclasses
from lwptv_lightning.registry import ConfigurationError, nearest, shown

_KEY = re.compile(r'^(?:Parser key|Problem with given class_path|Validation failed: Key) "?([^":\n]+)"?')
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "NoneType": "null",
    "dict": "a mapping",
    "list": "a list",
    "tuple": "a list",
    "Iterable": "a list",
}


def in_our_words(message: str) -> tuple[str, str]:
    r"""Return the key that a message of jsonargparse is about, and what is wrong there in a sentence.

    Example:
        >>> in_our_words('Parser key "trainer.max_epochs":\n  Expected a <class \'int\'>. Got value: x')
        ('trainer.max_epochs', "expected a whole number, not 'x'.")
    """
    found = _KEY.search(message)
    key = found[1] if found else ""
    if (inner := re.search(r"Problem with given class_path '([^']+)':\s*\n?\s*(.+)", message)) is not None:
        return _of_class(key, inner[1], inner[2].strip())
    if (name := re.search(r"does not accept option '([^']+)'|Option '([^']+)' is not accepted", message)) is not None:
        return ".".join(filter(None, (key, name[1] or name[2]))), "unknown key."
    if "is required but not included" in message:
        return re.sub(r'.*Key "([^"]+)".*', r"\1", message, flags=re.DOTALL), "it is required, and not given."
    kinds = _kinds(message)
    value = _value(message)
    if kinds and value is not None:
        return key, f"expected {_either(kinds)}, not {value}.{_of_path(message, kinds, value)}"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -:")]
    return key, lines[-1] if lines else "it cannot be read."


def _of_class(key: str, path: str, problem: str) -> tuple[str, str]:
    if (option := re.search(r"Option '([^']+)' is not accepted", problem)) is not None:
        hint = nearest(option[1], accepted(path))
        return f"{key}.init_args.{option[1]}", f"{path} takes no such argument.{hint}"
    try:
        named_object(key, path)
    except ConfigurationError as error:
        return key, error.problem
    return key, f"{path}: {problem.rstrip('.')}."


def _kinds(message: str) -> list[str]:
    listed = re.search(r"Subtypes: \[(.*)\]$", message, re.MULTILINE)
    text = listed[1] if listed else "".join(re.findall(r"Expected (?:an? )?(.+?)(?:\. Got|$)", message)[:1])
    kinds: list[str] = []
    for piece in _pieces(text):
        if (literal := re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", piece)) is not None:
            kinds += [str(each) for each in ast.literal_eval(f"({literal[1]},)")]
            continue
        name = re.sub(r"<class '(.+)'>", r"\1", piece)
        name = re.sub(r"\[.*\]", "", name).rpartition(".")[2]
        kinds.append(_WORDS.get(name, f"{_article(name)} {name} (class_path, init_args)" if name else ""))
    return [kind for kind in dict.fromkeys(kinds) if kind]


def _pieces(text: str) -> list[str]:
    """Part a list of types at the commas that are not within brackets."""
    pieces, depth, start = [], 0, 0
    for place, letter in enumerate(f"{text},"):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            pieces.append(text[start:place].strip())
            start = place + 1
    return [piece for piece in pieces if piece]


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeiou" else "a"


def _either(kinds: list[str]) -> str:
    return kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"


def _value(message: str) -> str | None:
    found = re.search(r"(?:Given value|Got value): (.*)\Z", message, re.DOTALL)
    if found is None:
        return None
    is_text = "Given value type: <class 'str'>" in message or "Given value type" not in message
    return shown(found[1]) if is_text else shown(found[1]).strip("'\"")


def _of_path(message: str, kinds: list[str], value: str) -> str:
    """Say what of a value's class path is wrong, where one was meant."""
    if (lacking := re.search(r"Expected a dot import path string: (\S+)", message)) is not None:
        known = [kind.split(" ")[1] for kind in kinds if "class_path" in kind]
        near = nearest(lacking[1], [name for kind in known for name in subclasses(kind)])
        return f" There is no class {lacking[1]!r}.{near}" if not lacking[1].isdigit() else ""
    if (
        failed := re.search(
            r"(No module named '[^']+'|module '[^']+' has no attribute '[^']+'|[Cc]annot import[^\n]+)", message
        )
    ) is not None:
        return f" {failed[1]}."
    return ""

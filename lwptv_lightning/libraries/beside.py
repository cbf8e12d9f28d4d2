"""The small files that belong to a model's weights, by an allow-list: nothing else beside them is copied."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lwptv_lightning.checkpoints import Checkpoint, CheckpointError
from lwptv_lightning.files import InputFile, beside
from lwptv_lightning.registry import matches, parse_json

CONFIG = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
GENERATION_CONFIG = "generation_config.json"
PROCESSING = (
    "tokenizer*.json",
    "tokenizer*.model",
    "tokenizer*.txt",
    "vocab*.json",
    "vocab*.txt",
    "merges*.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece*.model",
    "spiece*.model",
    "spm*.model",
    "tekken.json",
    "*.tiktoken",
    "chat_template*.json",
    "chat_template*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor*.json",
    "video_preprocessor_config.json",
    "feature_extractor*.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
)
"""Globs of what tells how inputs are made, and of licences."""
_WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.distcp",
    ".metadata",
    "lwptv.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
_OTHERS = (CONFIG, OPEN_CLIP_CONFIG, GENERATION_CONFIG, "README.md", ".gitattributes", "*.py", "recipe.json", "*.lock")
_MODULE = re.compile(r"(?:[\w.-]+/[\w.-]+--)?(?P<module>[A-Za-z_]\w*)\.\w+")
"""What ``auto_map`` names: a class in a module beside the configuration, or in another repository."""


def belongs_to_a_model(entry: Path) -> bool:
    """Tell whether an entry of a folder is of a model's, so that it goes where the model is replaced."""
    if entry.is_dir() and not entry.is_symlink():
        return entry.name == "__pycache__"
    return matches(entry.name, (*_WEIGHTS, *_OTHERS, *PROCESSING))


def configuration(origin: Checkpoint, name: str) -> dict[str, Any]:
    """Return what a configuration beside a checkpoint says; nothing where there is none.

    Raises:
        CheckpointError: It is no JSON object.
    """
    if origin.folder is None:
        return {}
    try:
        text = _file(origin, name).text()
    except FileNotFoundError:
        return {}
    path = origin.folder / name
    try:
        content = parse_json(text, str(path))
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object.")
    return content


def processing_files(origin: Checkpoint) -> dict[str, bytes]:
    """Return the files beside a checkpoint that tell how inputs are made, and the licence, by their names.

    Raises:
        CheckpointError: One is no regular file, or a link that leads out of the folder.
    """
    return {name: _file(origin, name).text() for name in _names_beside(origin) if matches(name, PROCESSING)}


def code_files(origin: Checkpoint, config: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the modules beside a checkpoint that a configuration's ``auto_map`` names, and what they import there.

    They are copied as text; nothing here runs them.
    """
    by_role = config.get("auto_map")
    classes = [each for value in by_role.values() for each in _flat(value)] if isinstance(by_role, dict) else []
    wanted = [f"{named['module']}.py" for named in map(_MODULE.fullmatch, classes) if named is not None]
    present, found = set(_names_beside(origin)), dict[str, bytes]()
    while wanted:
        name = wanted.pop()
        if name in present and name not in found:
            found[name] = _file(origin, name).text()
            wanted += _imported(found[name])
    return found


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from (each for each in value if isinstance(each, str))


def _imported(source: bytes) -> list[str]:
    """Return the files beside a module that it imports by a dot."""
    found = []
    with suppress(SyntaxError, ValueError, RecursionError):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                found += [f"{name.partition('.')[0]}.py" for name in names]
    return found


def _names_beside(origin: Checkpoint) -> list[str]:
    return [] if origin.folder is None else sorted(entry.name for entry in origin.folder.iterdir())


def _file(origin: Checkpoint, name: str) -> InputFile:
    """Look at a file beside a checkpoint, whose folder links may not leave, but as those of its weights do."""
    assert origin.folder is not None
    weights = origin.inputs[0].path if origin.inputs else None
    return InputFile.at(beside(origin.folder, name, CheckpointError, origin=weights), CheckpointError)

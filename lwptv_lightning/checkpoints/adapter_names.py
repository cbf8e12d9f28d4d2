"""What the names in PEFT's adapters say: which tensor is what part of the change of which module.

PEFT puts the module that it adapts under ``base_layer``, and those names come into the file with the tensors that are
saved whole; where it wraps a module twice, they stand in the names of the factors too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, some_of

_ROOT = "base_model.model."
_PART = re.compile(r"(?P<module>.+)\.lora_(?P<part>(?:embedding_)?[AB]|E|magnitude_vector)(?:\.(?P<kind>weight|bias))?")
_ROWS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta")
_OF_TRAINING = re.compile(r".+\.lora_(velora_embed|monteclora_sampler)(\..+)?")
"""What variants of LoRA keep for their training alone, and which changes nothing of what they compute afterwards."""
_SAVED_TWICE = re.compile(r"(.+)\.(?:original_module|modules_to_save)\.(.+)")
"""Biases of a module that is saved whole, which ``bias="all"`` saves once more."""
_WRAPPERS = ("base_layer", "token_adapter")


@dataclass
class AdaptedModule:
    """The parts of a change of one module.

    Attributes:
        path: The module, as the model names it.
        depth: How many wrappers stand between this change and the module; only those of bare parameters are several.
        is_within: Whether it stands inside of another module that is adapted as a whole.
        parts: Name of a part, such as ``"A"``, to the tensor's name in the file.
        is_embedding: Whether the factors are those of an embedding.
    """

    path: str
    depth: int
    is_within: bool
    parts: dict[str, str] = field(default_factory=dict)
    is_embedding: bool = False


@dataclass(frozen=True)
class AdapterNames:
    """The tensors of an adapter, sorted.

    Attributes:
        modules: What is adapted by factors.
        rows: Path of an embedding to the tensor with those of its rows that were trained.
        whole: Name in the model to name in the file, of tensors that are saved whole.
    """

    modules: tuple[AdaptedModule, ...]
    rows: Mapping[str, str]
    whole: Mapping[str, str]

    @classmethod
    def of(cls, adapter: Checkpoint) -> AdapterNames:
        """Sort the names of an adapter.

        Raises:
            CheckpointError: A name is of no part that is known, or two factors do not make a product.
        """
        found: dict[str, dict[str, str]] = {}
        embeddings: set[str] = set()
        rows: dict[str, str] = {}
        others: list[str] = []
        for name in adapter.names:
            if match := _PART.fullmatch(name):
                part = match["part"].removeprefix("embedding_")
                if match["kind"] == "bias":
                    part = f"{part}.bias"
                if name != found.setdefault(match["module"], {}).setdefault(part, name):
                    other = found[match["module"]][part]
                    raise CheckpointError(f"{adapter.source}: {other!r} and {name!r} are one part of an adapter.")
                if match["part"] != part and match["kind"] != "bias":
                    embeddings.add(match["module"])
            elif match := _ROWS.fullmatch(name):
                rows[match["module"]] = name
            elif ".lora_" not in name:
                twice = _SAVED_TWICE.fullmatch(name)
                if twice is None or f"{twice[1]}.{twice[2]}" not in adapter.headers:
                    others.append(name)
            elif not _OF_TRAINING.fullmatch(name):
                raise CheckpointError(f"{adapter.source}: {name!r} is no factor A or B of plain LoRA.")
        unwrap = _Unwrapping([*found, *rows, *(f"{module}.token_adapter" for module in rows)])
        modules = []
        for path, parts in found.items():
            inner, depth, is_within = unwrap(path)
            _require_factors(adapter, inner, parts)
            modules.append(AdaptedModule(inner, depth, is_within, parts, path in embeddings))
        return cls(
            tuple(modules),
            {unwrap(path)[0]: name for path, name in rows.items()},
            {unwrap(name)[0]: name for name in others},
        )


class _Unwrapping:
    """Takes PEFT's root and the names of its wrappers out of paths, where they stand behind what is wrapped."""

    def __init__(self, wrapped: list[str]) -> None:
        self._wrapped = set(wrapped)

    def __call__(self, path: str) -> tuple[str, int, bool]:
        """Return the path in the model, how many wrappers end it, and whether one stands before its end."""
        kept: list[str] = []
        seen: list[str] = []
        depth, is_within = 0, False
        for part in path.split("."):
            if part in _WRAPPERS and ".".join(seen) in self._wrapped:
                depth += 1
            else:
                is_within, depth = is_within or depth > 0, 0
                kept.append(part)
            seen.append(part)
        return ".".join(kept).removeprefix(_ROOT), depth, is_within


def _require_factors(adapter: Checkpoint, module: str, parts: Mapping[str, str]) -> None:
    if unknown := [name for part, name in parts.items() if part.endswith(".bias") and part != "B.bias"]:
        raise CheckpointError(f"{adapter.source}: {unknown[0]!r} is no part of LoRA that is known.")
    missing = [part for part in "AB" if part not in parts]
    if missing:
        raise CheckpointError(f"{adapter.source}: {module!r} has one factor only, {some_of(parts.values())}")

"""What a file says of itself, enough to make it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lwptv_lightning import __version__
from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError
from lwptv_lightning.registry import nearest, parse_json, require_kind, shown

KINDS = ("merged", "task_vector", "base", "adapter")
"""What the library writes."""
_SHORT = 200
"""Characters of a broken value that a message shows."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a file of the library says of itself, as plain values that JSON keeps.

    Attributes:
        kind: ``"merged"``, ``"task_vector"``, ``"base"`` or ``"adapter"``; None where the file does not say.
        base: Fingerprint of the base.
        base_tensors: Tensor name to fingerprint of each floating tensor of a task vector's base, so that it is known
            where another model has some of them; None in files of earlier versions.
        tasks: Task name to the fingerprint of its fine-tuned weights, or None where that is not known.
        recipe: The merge's recipe, as it was asked for.
        scale: The scaling coefficient in force, which the recipe may have left to the rule.
        mask: Task name to the names of the layers that it keeps; None where nothing was pruned.
        layers: Layer name to the names of its tensors, in execution order, where a model told them; None where they are
            those that the tensors' names tell.
        excluded: Globs of the tensors that were not merged.
        roles: What tensors were taken for that are no weights by themselves: the names of those that were
            ``"averaged"`` and of floating ones that were ``"copied"``, and further names of ``"tied"`` weights, each
            with the one under which it was merged; None in files of earlier versions.
        data: Fingerprint of what was collected on data, for rules that need it.
        versions: Library to version.
        density: The fraction of entries that a task vector keeps.
        progress: The epoch and step that a task vector is of.
        metrics: The metrics that its trainer had then.
        changed: Tensors of a merged model that hold other values than the merge gave them, such as statistics that were
            measured anew.
        left_out: Tensors of the base that the file does not hold: its classifier, where the tasks' have other shapes.
        notes: What else is to be known of the file or the folder that it stands in, in sentences.
        evaluated_in: The dtypes in which a merged model was held that are narrower than the base's.
        twins: Further names of tied weights that the base's file has not, each with the one that it has.
        resized: Tensors that were brought to another image size, in the base or in a task, before they were merged.

    Example:
        >>> made = Provenance(kind="merged", tasks={"a,b": None}, recipe={"rule": "ties"}, scale=1.0)
        >>> Provenance.from_metadata(made.to_metadata()) == made
        True
    """

    kind: str | None = None
    base: str | None = None
    base_tensors: Mapping[str, str] | None = None
    tasks: Mapping[str, str | None] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    scale: float | None = None
    mask: Mapping[str, list[str]] | None = None
    layers: Mapping[str, list[str]] | None = None
    excluded: Sequence[str] = field(default_factory=list)
    roles: Mapping[str, Any] | None = None
    data: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    density: float | None = None
    progress: Mapping[str, int] | None = None
    metrics: Mapping[str, float] | None = None
    changed: Sequence[str] = field(default_factory=list)
    left_out: Sequence[str] = field(default_factory=list)
    notes: Sequence[str] = field(default_factory=list)
    evaluated_in: Sequence[str] = field(default_factory=list)
    resized: Sequence[str] = field(default_factory=list)
    twins: Mapping[str, str] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata of a safetensors file, with the keys that earlier versions read among them."""
        metadata = {"format": "pt", "lwptv_kind": self.kind, "lwptv_base_fingerprint": self.base}
        if self.tasks:
            metadata["lwptv_task" if self.kind == "task_vector" else "lwptv_tasks"] = ",".join(self.tasks)
        for name, (key, _, _) in _AS_JSON.items():
            if (value := getattr(self, name)) != getattr(Provenance(), name):
                metadata[key] = json.dumps(value)
        return {key: text for key, text in metadata.items() if text is not None}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str = "metadata") -> Provenance:
        """Read what a file says of itself, of an earlier version too; what it does not say stays at its default.

        Args:
            metadata: The file's metadata.
            source: Its name, for messages.

        Raises:
            CheckpointError: A value is broken.
        """
        require_kind(source, metadata, Mapping, "a mapping of texts")
        for key, text in metadata.items():
            if not isinstance(key, str) or not isinstance(text, str):
                raise CheckpointError(f"{source}: {shown(key)} must be a text with a text, not {shown(text)}.")
        kind = metadata.get("lwptv_kind", "merged" if "lwptv_recipe" in metadata else None)
        if kind is not None and kind not in KINDS:
            raise CheckpointError(
                f"{source}: lwptv_kind is {shown(kind)}, expected one of {', '.join(KINDS)}.{nearest(kind, KINDS)}"
            )
        values: dict[str, Any] = {}
        if "lwptv_task" in metadata or "lwptv_tasks" in metadata:  # joined by commas before the names had a key as JSON
            one = metadata.get("lwptv_task")
            values["tasks"] = dict.fromkeys(metadata["lwptv_tasks"].split(",") if one is None else [one])
        for name, (key, expected, fits) in _AS_JSON.items():
            if key in metadata:
                values[name] = _parsed(metadata[key], f"{source}: {key}", expected, fits)
        return cls(kind=kind, base=metadata.get("lwptv_base_fingerprint"), **values)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Provenance:
        """Read what the file of a checkpoint says of itself; see `from_metadata`."""
        return cls.from_metadata(checkpoint.metadata, checkpoint.source)

    @staticmethod
    def current_versions(**others: str) -> dict[str, str]:
        """Return the versions of this library and of torch, and others that are given."""
        return {"lwptv_lightning": __version__, **others, "torch": torch.__version__}


def _mapping_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(type(entry) in kinds for entry in value.values())


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_mask(value: Any) -> bool:
    return _mapping_of(list)(value) and all(isinstance(name, str) for names in value.values() for name in names)


def _are_roles(value: Any) -> bool:
    if not (isinstance(value, dict) and value.keys() == {"averaged", "copied", "tied"}):
        return False
    return all(map(_is_list_of_names, (value["averaged"], value["copied"]))) and _mapping_of(str)(value["tied"])


_AS_JSON: dict[str, tuple[str, str, Callable[[Any], bool]]] = {
    "tasks": ("lwptv_task_fingerprints", "task names to fingerprints", _mapping_of(str, type(None))),
    "base_tensors": ("lwptv_base_tensors", "tensor names to fingerprints", _mapping_of(str)),
    "recipe": ("lwptv_recipe", "a recipe", lambda value: isinstance(value, dict)),
    "scale": ("lwptv_scale", "a number", lambda value: type(value) in (int, float)),
    "mask": ("lwptv_mask", "task names to lists of layers", _is_mask),
    "layers": ("lwptv_layers", "layers to lists of tensors", _is_mask),
    "excluded": ("lwptv_excluded", "globs of tensor names", _is_list_of_names),
    "roles": ("lwptv_roles", "the names of averaged, copied and tied tensors", _are_roles),
    "data": ("lwptv_data_fingerprint", "a fingerprint", lambda value: isinstance(value, str)),
    "versions": ("lwptv_versions", "libraries to versions", _mapping_of(str)),
    "density": ("lwptv_density", "a fraction", lambda value: type(value) in (int, float) and 0 < value <= 1),
    "progress": ("lwptv_progress", "epoch and step", _mapping_of(int)),
    "metrics": ("lwptv_metrics", "metrics to numbers", _mapping_of(int, float)),
    "changed": ("lwptv_changed", "tensor names", _is_list_of_names),
    "left_out": ("lwptv_left_out", "tensor names", _is_list_of_names),
    "notes": ("lwptv_notes", "sentences", _is_list_of_names),
    "evaluated_in": ("lwptv_evaluated_in", "dtypes", _is_list_of_names),
    "resized": ("lwptv_resized", "tensor names", _is_list_of_names),
    "twins": ("lwptv_twins", "tensor names to tensor names", _mapping_of(str)),
}
"""Of each attribute its key, what its JSON holds, and whether a value is that."""


def _parsed(text: str, key: str, expected: str, fits: Callable[[Any], bool]) -> Any:
    try:
        value = parse_json(text, key)
    except ValueError as error:
        raise CheckpointError(f"{str(error).rstrip('.')}; expected {expected}.") from error
    if not fits(value):
        raise CheckpointError(f"{key} is {text if len(text) < _SHORT else shown(text)}, expected {expected}.")
    return value

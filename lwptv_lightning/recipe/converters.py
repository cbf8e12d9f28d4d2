"""What each field of a recipe takes, read as the recipe holds it.

Rules and saliency are imported where they are used: the command line's help lists the fields, without a wait for torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lwptv_lightning.registry import require_known, require_ratio, shown

if TYPE_CHECKING:
    from lwptv_lightning.modifiers import Calibration, Reweighting, Subspace
    from lwptv_lightning.rules import MergeRule
    from lwptv_lightning.saliency import ElementPruning

DTYPES = ("float32", "float64")


def read_rule(name: str, value: Any) -> MergeRule:
    """Return a merging rule from its name, a mapping, or itself."""
    from lwptv_lightning.rules import make_rule

    return make_rule(value)


def read_reweight(name: str, value: Any) -> Reweighting:
    """Return what acts on task vectors before a rule."""
    from lwptv_lightning.modifiers import REWEIGHTINGS, Reweighting, make_modifier

    return make_modifier(name, value, Reweighting, REWEIGHTINGS)  # type: ignore[type-abstract]


def read_calibrate(name: str, value: Any) -> Calibration:
    """Return what acts on what a rule made."""
    from lwptv_lightning.modifiers import CALIBRATIONS, Calibration, make_modifier

    return make_modifier(name, value, Calibration, CALIBRATIONS)  # type: ignore[type-abstract]


def read_subspace(name: str, value: Any) -> Subspace:
    """Return in which space a rule works."""
    from lwptv_lightning.modifiers import SUBSPACES, Subspace, make_modifier

    return make_modifier(name, value, Subspace, SUBSPACES)


def read_score(name: str, value: Any) -> str:
    """Return the name of a saliency score."""
    from lwptv_lightning.saliency import require_score

    if not isinstance(value, str | int | float):
        raise TypeError(f"{name} must be the name of a saliency score, not {shown(value)}.")
    score = value if isinstance(value, str) else shown(value)
    require_score(score)
    return score


def read_elements(name: str, value: Any) -> ElementPruning:
    """Return element pruning from itself or a mapping with its ratio."""
    from lwptv_lightning.saliency import ElementPruning

    if isinstance(value, Mapping) and value.keys() == {"ratio"}:
        value = ElementPruning(ratio=require_ratio(value["ratio"], f"the ratio of {name}"))
    if not isinstance(value, ElementPruning):
        raise TypeError(f"{name} must be an ElementPruning or a mapping with its ratio, not {shown(value)}.")
    return value


def elements_ratio(word: str) -> dict[str, float]:
    """Read what `read_elements` takes from a word of the command line, whose message of a wrong one has this name."""
    return {"ratio": float(word)}


def read_dtype(name: str, value: Any) -> str:
    """Return the name of what to compute in."""
    known = shown(value).removeprefix("torch.") if not isinstance(value, str) else value.removeprefix("torch.")
    if known not in DTYPES and not isinstance(value, str):
        raise ValueError(f"{name} must be torch.float32 or torch.float64, not {shown(value)}.")
    require_known(name, known, DTYPES)
    return known


def read_task(name: str, value: Any) -> str:
    """Return the name of a task."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be the name of a task, not {shown(value)}.")
    return value

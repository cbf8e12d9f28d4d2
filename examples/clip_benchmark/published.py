"""What the reference implementation publishes for a split, and a table of it beside what was measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lwptv_lightning import MergeRecipe
from lwptv_lightning.report import markdown_table

PUBLISHED = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
TOLERANCE = PUBLISHED["tolerance"]
RECIPES = {rule: MergeRecipe.from_dict(recipe) for rule, recipe in PUBLISHED["recipes"].items()}
HEADINGS = ("model", "merged", "published", "difference", "unseen", "published", "difference", "")


@dataclass(frozen=True)
class Reference:
    """What is published for one split, in %.

    Attributes:
        rows: A model, such as ``"base"`` or a rule, to its averages over the merged and over the held-out tasks; None
            where that is not published.
        is_of_this_split: Whether rules are among them.
    """

    rows: Mapping[str | None, tuple[float | None, float | None]] = field(default_factory=dict)
    is_of_this_split: bool = False

    @classmethod
    def of(cls, model: str, merged: Sequence[str], held_out: Sequence[str]) -> "Reference":
        """Return what is published for a model, merged tasks and held-out ones; nothing for another model."""
        if model != PUBLISHED["model"] or not {*merged, *held_out} <= PUBLISHED["experts"].keys():
            return cls()
        singles = {
            "base": (mean(PUBLISHED["base"], merged), mean(PUBLISHED["base"], held_out)),
            "experts": (mean(PUBLISHED["experts"], merged), None),
        }
        for split in PUBLISHED["splits"]:
            tasks = split["rows"]["base"]["sets"].keys()
            if set(split["held_out"]) == set(held_out) and tasks == {*merged, *held_out}:
                stated = {name: row["averages"] for name, row in split["rows"].items()}
                return cls(singles | {name: (of["merged"], of["unseen"]) for name, of in stated.items()}, True)
        return cls(singles)


def mean(figures: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(figures[name] for name in names) / len(names)


def comparison(rows: Iterable[tuple[str, str | None, tuple[float, float]]], reference: Reference) -> str:
    """Return a table in Markdown of averages in %, over merged and over held-out tasks, beside what is published.

    Args:
        rows: A model's name, what it is published as, and its two averages.
        reference: What is published.
    """
    lines = []
    for name, published_as, measured in rows:
        published = reference.rows.get(published_as, (None, None))
        cells, agree = [name], []
        for ours, theirs in zip(measured, published, strict=True):
            cells.append(f"{ours:.1f}")
            if theirs is None:
                cells += ["", ""]
            else:
                agree.append(abs(ours - theirs) <= TOLERANCE)
                cells += [f"{theirs:.1f}", f"{ours - theirs:+.1f}"]
        lines.append([*cells, ("agrees" if all(agree) else "DIFFERS") if agree else ""])
    note = f"Published is what FusionBench's tables say; up to {TOLERANCE:g} points apart agrees: see published.yaml."
    if not reference.is_of_this_split:
        note = "No rule's figures are published for this model and split; " + note[0].lower() + note[1:]
    return f"{markdown_table(HEADINGS, lines)}\n\n{note}"

"""What the figures of a search say, in two sentences that claim no more than their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lwptv_lightning.registry import LoaderName
from lwptv_lightning.search.compare import Difference

FEW = 100
"""Samples of a set below which it is said that they are few."""


@dataclass(frozen=True)
class Evidence:
    """What a recommendation rests on.

    Attributes:
        name: The chosen candidate.
        how: What chose it, such as ``"one_standard_error"``.
        candidates: How many it was chosen among.
        figures: Its figures on the test sets.
        others: What it is compared with to differences over ``"id"``, ``"ood"`` and groups such as ``"ood/far"``:
            ``"reference"``, ``"unpruned"``, ``"masks"`` and ``"base"``, as far as there are such. Of groups only losses
            are told, which an average over all sets can hide.
        prunes: Whether it prunes.
        fewest: The samples of the smallest test set, and of the smallest validation set.
        halved: Whether validation and test samples are halves of the same sets.
        learnt: Whether it has learnt coefficients, so that its controls tell what these are worth.
    """

    name: str
    how: str
    candidates: int
    figures: Mapping[str, float]
    others: Mapping[str, Mapping[str, Difference]]
    prunes: bool
    fewest: tuple[int, int]
    halved: bool = False
    learnt: bool = False


def recommend(found: Evidence) -> tuple[str, str]:
    """Return what to take, and what speaks against relying on it.

    Example:
        >>> gain = {"id": Difference(0.02, 0.01, 0.03)}
        >>> first, second = recommend(
        ...     Evidence("ties x 1", "best", 9, {"id/avg": 0.8}, {"reference": gain, "base": gain}, False, (200, 200))
        ... )
        >>> first.partition(", which")[0], second.partition(";")[0]
        ('Take ties x 1', 'Against the base it is a gain in ID (+2.0 [+1.0, +3.0])')
    """
    against = found.others.get("reference", {})
    named = " and ".join(
        f"{100 * found.figures[f'{over}/avg']:.1f} % {_WORDS[over]}"
        for over in _WORDS
        if f"{over}/avg" in found.figures
    )
    chose = f"which {found.how} chose among {found.candidates} candidates by ID validation accuracy"
    told = f"{chose}: {named} on the test sets"
    compared = f", against task arithmetic x 0.3 {verdict(against)}" if against else ""
    return f"{_advice(found.name, against)}, {told}{compared}.", _sentence(_caveats(found))


def _advice(name: str, against: Mapping[str, Difference]) -> str:
    """Return what to do with the chosen candidate, by how it does against task arithmetic at 0.3."""
    if not against:
        return f"Stay with {name}"
    gains, losses = ([over for over in _WORDS if over in against and _side(against[over]) == side] for side in (1, -1))
    if gains and losses:
        return f"Take {name} only where {_WORDS[gains[0]]} accuracy counts more than {_WORDS[losses[0]]} accuracy"
    if losses:
        return f"Take task arithmetic x 0.3 rather than {name}"
    return f"Take {name}" if gains else f"Take {name} or task arithmetic x 0.3, which cannot be told apart here"


def _caveats(found: Evidence) -> list[str]:
    told = []
    controls = [
        f"{_worth(found.others[role])} against {words}" for role, words in _CONTROLS.items() if role in found.others
    ]
    if controls:
        own = "what it learnt" if found.learnt else "its pruning"
        told.append(f"{own} {', and '.join(controls)}")
    elif found.prunes:
        told.append("what its pruning is worth was not measured")
    if "base" in found.others:
        told.append(f"against the base it is {verdict(found.others['base'])}")
    if "ood/avg" not in found.figures:
        told.append("nothing can be said of other domains, since there is no OOD set")
    test, validation = found.fewest
    if min(test, validation) < FEW:
        told.append(f"samples are few, {validation} of the smallest validation and {test} of the smallest test set")
    if found.halved:
        told.append("it was chosen on halves of the ID sets and is reported on the others")
    return told or ["it was compared with nothing else"]


def _worth(differences: Mapping[str, Difference]) -> str:
    """Return whether something is worth it, never more than the intervals say."""
    sides = {_side(each) for each in _told(differences).values()}
    if sides == {0}:
        return f"is not shown to be worth it ({_figures(differences)})"
    return f"is {verdict(differences)}"


def _side(difference: Difference) -> int:
    """Return 1 for a gain, -1 for a loss and 0 for neither, as the interval is told: to a tenth of a point."""
    low, high = (round(100 * end, 1) for end in (difference.low, difference.high))
    return int(low > 0) - int(high < 0)


def verdict(differences: Mapping[str, Difference]) -> str:
    """Return in words whether differences are gains, losses or neither, with their intervals."""
    kinds: dict[str, list[str]] = {}
    for over, each in _told(differences).items():
        kind = {1: "a gain", -1: "a loss", 0: _NEITHER}[_side(each)]
        kinds.setdefault(kind, []).append(f"in {_heading(over)} ({each})")
    return " and ".join(f"{kind} {' and '.join(names)}" for kind, names in kinds.items())


def _figures(differences: Mapping[str, Difference]) -> str:
    return ", ".join(f"{_heading(over)} {each}" for over, each in _told(differences).items())


def _told(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """Return what is told: domains, and the groups that lose."""
    losing = {over: each for over, each in differences.items() if over not in _WORDS and _side(each) < 0}
    return {over: differences[over] for over in _WORDS if over in differences} | losing


def _heading(over: str) -> str:
    return LoaderName.of_figure(f"{over}/avg").heading.removesuffix(" avg")


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


_WORDS = {"id": "ID", "ood": "OOD"}
_CONTROLS = {
    "unpruned": "the same rule tuned without pruning",
    "masks": "random masks of as many layers, tuned as well",
}
_NEITHER = "no difference that can be told from zero"

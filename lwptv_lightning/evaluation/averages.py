"""Averages of figures over the ID and over the OOD loaders, and over their groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lwptv_lightning.checkpoints import some_of
from lwptv_lightning.registry import LoaderName, own_tasks, require_finite, require_kind, shown


def averages(
    figures: Mapping[str, float],
    expert_accuracy: Mapping[str, float] | None = None,
    loaders: Iterable[str] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Average figures over the ID and over the OOD loaders, as far as there are such loaders, and over their groups.

    A group's average, ``ood/<group>/avg``, is the mean over its sets, and ``ood/avg`` the mean over all sets of the
    domain, not over the groups. Each part of a metric's result, ``<loader>/<part>``, has an average of its own,
    ``id/avg/<part>``, if all loaders of the domain have it. With expert accuracies, of ID sets by name, also
    ``id/normalized``: the mean over those sets of merged divided by expert, which leaves out the numbered parts of a
    result, such as classes. What has no name, a metric's one number or a numbered part, is averaged where all loaders
    have metrics of one kind.

    Args:
        figures: Loader name, or that and a part, to figure.
        expert_accuracy: Set name, with its group or without, to the accuracy of its expert.
        loaders: The loaders' names; by default a name ends before the second slash, so that none is of a group.
        kinds: Loader name to the kind of its metric; all of one by default.

    Example:
        >>> averages({"id/a": 0.8, "id/b": 0.6, "ood/c": 0.5}, {"a": 1.0, "b": 0.6})
        {'id/avg': 0.7, 'ood/avg': 0.5, 'id/normalized': 0.9}
        >>> sets = {"ood/near/a": 0.75, "ood/near/b": 0.25, "ood/far/a": 0.125}
        >>> averages(sets, loaders=sets)
        {'ood/near/avg': 0.5, 'ood/far/avg': 0.125, 'ood/avg': 0.375}
    """
    names = ["/".join(name.split("/")[:2]) for name in figures] if loaders is None else list(loaders)
    experts = expert_accuracy or {}
    kinds = kinds or {}
    found: dict[str, float] = {}
    for over, members in _averaged(names).items():
        found |= _means(f"{over}/avg", {name: _parts(figures, name, names) for name in members}, kinds)
    divided = {
        name: {
            part: figure / experts[task]
            for part, figure in _parts(figures, name, names).items()
            if not _is_numbered(part)  # no accuracy of a set, but of a class
        }
        for name, task in own_tasks(names, experts).items()
    }
    return found | _means("id/normalized", divided, kinds)


def _averaged(loaders: Iterable[str]) -> dict[str, list[str]]:
    """Return what is averaged over, each domain behind its groups, to its loaders."""
    parsed = {loader: LoaderName.of_figure(loader) for loader in loaders}
    found: dict[str, list[str]] = {}
    for domain in dict.fromkeys(name.domain for name in parsed.values()):
        groups = dict.fromkeys(name.group for name in parsed.values() if name.domain == domain)
        for over in [*(f"{domain}/{group}" for group in groups if group is not None), domain]:
            found[over] = [loader for loader, name in parsed.items() if name.is_within(over)]
    return found


def _parts(figures: Mapping[str, float], loader: str, loaders: Sequence[str]) -> dict[str, float]:
    """Return a loader's figures by what stands behind its name, with the slash."""
    return {
        name[len(loader) :]: figure
        for name, figure in figures.items()
        if name == loader or (name.startswith(f"{loader}/") and name not in loaders)
    }


def _means(name: str, tables: Mapping[str, Mapping[str, float]], kinds: Mapping[str, str]) -> dict[str, float]:
    """Average each part that all of some loaders have; one without a name only over metrics of one kind."""
    first, *others = tables or [""]
    unlike = next((loader for loader in others if kinds.get(loader) != kinds.get(first)), None)
    every = dict.fromkeys(part for table in tables.values() for part in table)
    means = {
        f"{name}{part}": sum(table[part] for table in tables.values()) / len(tables)
        for part in every
        if all(part in table for table in tables.values()) and (unlike is None or not _is_unnamed(part))
    }
    if unlike is not None and (absent := [f"{name}{part}" for part in every if f"{name}{part}" not in means]):
        rank_zero_info(
            f"There is no {some_of(absent, 3)} {first!r} is measured by {kinds[first]}, and {unlike!r} by "
            f"{kinds[unlike]}. What collections have under one name, {{'<name>': metric}}, is averaged."
        )
    return means


def _is_numbered(part: str) -> bool:
    return any(piece.isdigit() for piece in part.split("/"))


def _is_unnamed(part: str) -> bool:
    return part.strip("/").partition("/")[0].isdigit() or not part


def accuracies(given: Mapping[str, Any] | None) -> dict[str, float]:
    """Return set names to numbers, of any library's kind; a `TypeError` or `ValueError` names what is none."""
    require_kind("expert_accuracy", given, Mapping | None, "a mapping of set names to numbers")
    found = {}
    for name, value in (given or {}).items():
        try:
            found[name] = require_finite(f"expert_accuracy of {name!r}", float(value))
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise TypeError(f"expert_accuracy of {name!r} must be a number, not {shown(value)}.") from error
    return found

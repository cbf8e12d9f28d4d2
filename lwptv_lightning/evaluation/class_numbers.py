"""Labels of sets that a task's head judges: numbered by the classes of the task's own set, not anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lwptv_lightning.evaluation.named_sets import NamedSet, renumbered
from lwptv_lightning.registry import ConfigurationError, LoaderName, nearest, printable_name

Aliases = Mapping[str, str]
"""Set name to the name of the set whose head it has."""


def numbered(
    key: str, name: str, data: NamedSet, tasks: Mapping[str, NamedSet], aliases: Aliases, others: frozenset[str]
) -> tuple[NamedSet, str]:
    """Return a set with the labels of the head that judges it, and a note where its names say nothing of them.

    Args:
        key: Where the set stands, for messages.
        name: Its name, with a group or without.
        data: The set.
        tasks: The ID sets.
        aliases: What names of heads stand for.
        others: Sets whose heads are none of a task's, whose classes nobody knows.

    Raises:
        ConfigurationError: A folder of it is a class that the head does not know.
    """
    if data.classes is None or data.is_numbered:
        return data, ""
    owner = _owner(name, data, tasks, aliases, others)
    known = None if owner is None else tasks[owner].classes
    if owner is None or known is None or data.classes == known:
        return data, ""
    unknown = [each for each in data.classes if each not in known]
    if not unknown:
        return replace(data, data=renumbered(data.data, [known.index(each) for each in data.classes])), ""
    if not (data.is_folder and tasks[owner].is_folder):
        return data, (
            f"{key}: its names of classes are others than those of data.id.{owner}, such as {unknown[0]!r}; its labels "
            "are taken as they are."
        )
    first = unknown[0]
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    raise ConfigurationError(
        key,
        f"the class {printable_name(first)!r}{more} of this set is unknown to its head, {owner!r}."
        f"{nearest(first, known)} data.id.{owner} has {_listed(known)}. Give the set a head of its own classes "
        "under 'heads', or leave it out.",
    )


def _owner(
    name: str, data: NamedSet, tasks: Mapping[str, NamedSet], aliases: Aliases, others: frozenset[str]
) -> str | None:
    """Return the ID set by whose classes another's are numbered; None where none is known to be."""
    keys = LoaderName.of_figure(f"ood/{name}").keys
    by_set = {each: task for task in tasks for each in reversed(LoaderName.of_figure(f"id/{task}").keys)}
    for each in keys:
        seen = {each}
        while (following := aliases.get(each)) is not None and following not in seen:
            seen.add(each := following)
        if each in others:
            return None
        if each in by_set:
            return by_set[each]
    lists = {each.classes for each in tasks.values()}
    knowing = [task for task, each in tasks.items() if {*(data.classes or ())} <= {*(each.classes or ())}]
    if len(lists) == 1:  # one classifier, which all sets share
        return next(iter(tasks))
    return knowing[0] if len({tasks[task].classes for task in knowing}) == 1 else None


def _listed(names: tuple[str, ...], most: int = 12) -> str:
    listed = ", ".join(map(printable_name, names[:most]))
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"

"""Which set of images is of which task, and whose head judges those that are of none."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lwptv_lightning.cli.found_sets import FoundSet, bare, chosen, words_of


@dataclass
class FoundData:
    """What a configuration's ``data`` and ``heads`` will say.

    Attributes:
        id: Task to set.
        validation: Task to set.
        ood: Name, with its group, to set.
        heads: Set to the task whose head it has, or to the base's path.
        left_out: Set, as its path is told, to why it is not reported.
    """

    id: dict[str, FoundSet] = field(default_factory=dict)
    validation: dict[str, FoundSet] = field(default_factory=dict)
    ood: dict[str, FoundSet] = field(default_factory=dict)
    heads: dict[str, str | Path] = field(default_factory=dict)
    left_out: dict[str, tuple[FoundSet, str]] = field(default_factory=dict)


def arrange(
    sets: Sequence[FoundSet], logits: Mapping[str, int | None], base: Path, base_logits: int | None, shared: bool
) -> FoundData:
    """Tell ID sets from OOD sets, and splits from each other.

    Args:
        sets: All that were found.
        logits: Task to how many classes its model tells apart, where that is known.
        base: The base's path.
        base_logits: How many classes the base's own classifier tells apart.
        shared: Whether all tasks share one classifier and one list of classes.
    """
    found = FoundData()
    rest = list(sets)
    for task in logits:
        own = [each for each in rest if each.domain != "ood" and _is_of(each, task, sets)]
        _take(found, task, own, logits[task])
        rest = [each for each in rest if each not in own]
    _by_classes(found, rest, logits)
    rest = [each for each in rest if each not in [*found.id.values(), *found.validation.values()]]
    _take_others(found, rest, logits, base, base_logits, shared)
    return found


def _is_of(data: FoundSet, task: str, sets: Sequence[FoundSet]) -> bool:
    if bare(data.name) == bare(task):
        return True
    # A name that says less than the task's, such as cats of cats_finetuned, where no other one says the same.
    fewer = {*words_of(data.name)} < {*words_of(task)} and bool(words_of(data.name))
    return fewer and not any(bare(each.name) == bare(task) for each in sets)


def _take(found: FoundData, task: str, own: Sequence[FoundSet], logits: int | None) -> None:
    """Take a task's sets: its test split is reported, its validation split is for choices."""
    fitting = [each for each in own if logits is None or len(each.classes) <= logits]
    for each in own:
        if each not in fitting:
            reason = f"{len(each.classes)} classes, and the head of {task!r} tells {logits} apart"
            found.left_out[str(each.path)] = (each, reason)
        elif each.split == "train":
            found.left_out[str(each.path)] = (each, "samples for training are never reported")
    reported = chosen(fitting, ("test", "", "validation"))
    if reported is None:
        return
    found.id[task] = reported
    if reported.split != "validation" and (other := chosen(fitting, ("validation",))) is not None:
        found.validation[task] = other


def _by_classes(found: FoundData, rest: Sequence[FoundSet], logits: Mapping[str, int | None]) -> None:
    """Give tasks without a set those that are ID by their folder, or all there are, by the number of classes."""
    lacking = [task for task in logits if task not in found.id]
    for each in rest:
        able = [task for task in lacking if logits[task] == len(each.classes)]
        free = [other for other in rest if other.domain != "ood" and len(other.classes) == len(each.classes)]
        named = {bare(other.name) for other in free}
        alone = len(logits) == 1 and len({bare(other.name) for other in rest if other.domain != "ood"}) == 1
        if len(able) == 1 and len(named) == 1 and (each.domain == "id" or (alone and each.domain != "ood")):
            _take(found, able[0], free, logits[able[0]])
            lacking.remove(able[0])


def _take_others(
    found: FoundData,
    rest: Sequence[FoundSet],
    logits: Mapping[str, int | None],
    base: Path,
    base_logits: int | None,
    shared: bool,
) -> None:
    by_name: dict[str, list[FoundSet]] = {}
    for each in rest:
        if each.domain == "id":
            found.left_out[str(each.path)] = (each, "it is of no task by its name or its number of classes")
        else:
            by_name.setdefault(f"{each.group}/{each.name}" if each.group else each.name, []).append(each)
    for name, own in by_name.items():
        for each in own:
            if each.split == "train":
                found.left_out[str(each.path)] = (each, "samples for training are never reported")
        data = chosen(own, ("test", "", "validation"))
        if data is None:
            continue
        head, reason = _head(name, data, found, logits, base, base_logits, shared)
        if reason:
            found.left_out[str(data.path)] = (data, reason)
            continue
        found.ood[name] = data
        if head is not None:
            found.heads[_short(name, by_name, logits)] = head


def _short(name: str, names: Iterable[str], tasks: Container[str]) -> str:
    """Return a set's name without its group, unless another set or a task is called so."""
    short = name.rpartition("/")[2]
    alike = [other for other in names if other.rpartition("/")[2] == short]
    return short if len(alike) == 1 and short not in tasks else name


def _head(
    name: str,
    data: FoundSet,
    found: FoundData,
    logits: Mapping[str, int | None],
    base: Path,
    base_logits: int | None,
    shared: bool,
) -> tuple[str | Path | None, str]:
    """Return whose head a set has, or why that is not known."""
    able = [task for task, own in found.id.items() if {*data.classes} <= {*own.classes}]
    if shared:
        return (None, "") if able else (None, "its classes are not those of the model")
    own_name = name.rpartition("/")[2]
    if own_name in able:
        return None, ""  # the head of its own name
    near = [task for task in able if {*words_of(task)} <= {*words_of(own_name)}]
    same = [task for task in able if {*data.classes} == {*found.id[task].classes}]
    for tasks in (near, same if len(same) == 1 else [], able):
        if len(tasks) == 1:
            return tasks[0], ""
    if able:
        return None, f"its classes are those of {', '.join(able)}: say under 'heads' whose head it has"
    if base_logits is not None and len(data.classes) == base_logits:
        return base, ""
    wanted = f", and the base's classifier tells {base_logits} apart" if base_logits else ""
    return None, f"no task has its {len(data.classes)} classes{wanted}: give it a head under 'heads'"

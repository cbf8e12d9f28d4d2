"""Whether checkpoints at hand are those that a file was made from, by the fingerprints that it holds of them."""

from __future__ import annotations

from collections.abc import Mapping

from lwptv_lightning.checkpoints import Checkpoint, Provenance, fingerprint, some_of, tensor_fingerprints
from lwptv_lightning.registry import nearest, shown


def input_problems(made: Mapping[str, str | None], given: Mapping[str, str]) -> dict[str, str]:
    """Say of each task that is not what it was when it was merged what it is instead.

    Args:
        made: Task name to the fingerprint of what was merged, None where it is not known.
        given: Task name to the fingerprint of what is at hand.

    Example:
        >>> input_problems({"a": "1", "b": "2"}, {"a": "2", "b": "1"})
        {'a': "holds the weights that were merged as 'b'.", 'b': "holds the weights that were merged as 'a'."}
        >>> input_problems({"greek": "1"}, {"greeks": "1"})
        {'greek': "is missing; its weights are given as 'greeks'.", 'greeks': "was not merged. Did you mean 'greek'?"}
    """
    problems = {}
    merged_as = {print_: task for task, print_ in made.items() if print_ is not None}
    given_as = {print_: task for task, print_ in given.items()}
    for task, expected in made.items():
        if task not in given:
            elsewhere = given_as.get(expected or "")
            named = f"; its weights are given as {shown(elsewhere)}." if elsewhere else f".{nearest(task, given)}"
            problems[task] = f"is missing{named}"
        elif expected is not None and given[task] != expected:
            other = merged_as.get(given[task])
            problems[task] = (
                f"holds the weights that were merged as {shown(other)}."
                if other is not None
                else f"is not what was merged: fingerprint {given[task][:12]}, expected {expected[:12]}."
            )
    return problems | {task: f"was not merged.{nearest(task, made)}" for task in given if task not in made}


def assigned(made: Mapping[str, str | None], given: Mapping[str, str]) -> dict[str, str] | None:
    """Return task as merged to task as given, by fingerprints, or None where some task's weights are not at hand."""
    given_as = {print_: task for task, print_ in given.items()}
    found = {}
    for task, expected in made.items():
        own = task if expected is None or given.get(task) == expected else given_as.get(expected)
        if own is None or own not in given:
            return None
        found[task] = own
    return found


def vector_base_problem(made: Provenance, base: Checkpoint) -> str | None:
    """Say that a base has not the weights that a task vector was made from, as far as it is of these."""
    if made.base_tensors is None:
        return base_problem(made.base, fingerprint(base, made.base))
    found = tensor_fingerprints(base, made.base_tensors)
    if other := [name for name, expected in made.base_tensors.items() if found.get(name) != expected]:
        return f"has other weights than those that it was made from: {some_of(other)}"
    return None


def base_problem(expected: str | None, found: str) -> str | None:
    """Say that the base is another than the one that was merged with; None where it is that, or nobody knows."""
    if expected is None or found == expected:
        return None
    return (
        f"is not the base that was merged: fingerprint {found[:12]}, expected {expected[:12]}. Where it is the same "
        "file, it is read otherwise: give a model and a prefix as for the merge."
    )

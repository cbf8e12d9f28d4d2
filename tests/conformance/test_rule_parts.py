"""What rules that are sums over tasks make of each task, for masks and coefficients to act on."""

import dataclasses

import pytest
import torch
from _helpers.every_rule import SHAPES, TWO_TASKS, changed, statistics_for, task_names, vectors_for
from _helpers.states import open_vectors

from lwptv_lightning.engine import Stream
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.rules import RULES, MergeContext, make_rule
from lwptv_lightning.saliency import LayerMask, masked

ASKED = {
    "reduce": ("mean", "sum", "max"),
    "scope": ("model", "tensor"),
    "plus_plus": (True,),
    "common_fraction": (0, 1),
    "off_diagonal": (False,),
    "divide_by_tasks": (False,),
    "smoothing": ("average", "linear"),
    "rank": (3,),
    "keep": (1.0,),
    "solver": ("closed_form",),
}
"""Hyper-parameters that choose another way."""
EVERYWHERE = {"include": ("*",)}
CENTRED = {"cart"}
"""Rules for which a task that did not move is one that differs from the mean."""


def ways():
    """Each rule as it is by default, and with each other way that it knows, where that has parts."""
    for name, rule in sorted(RULES.items()):
        ranges = {field.name: field.metadata["range"] for field in dataclasses.fields(rule)}
        common = {"name": name} | {key: value for key, value in EVERYWHERE.items() if key in ranges}
        # What is a flag of one rule may be a number of another.
        asked = [
            {key: each}
            for key in ASKED
            if key in ranges
            for each in ASKED[key]
            if not isinstance(each, bool) or ranges[key] == "true, false"
        ]
        yield from (way for other in ({}, *asked) if make_rule(way := common | other).is_sum)


WAYS = list(ways())
EVERY_WAY = pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))


def made(way, vectors, pruned=None, task=None):
    """Return the parts of each tensor, and what the rule combines."""
    rule, data = make_rule(way), statistics_for(way["name"], vectors)
    stream = Stream.of(vectors, data=data)
    if pruned is not None:
        layers = layers_from_names(vectors.names)
        kept = torch.tensor([[name != pruned] * len(layers) for name in vectors.tasks])
        stream = masked(stream, layers, LayerMask(vectors.tasks, layers.names, kept))
    survey = rule.survey(stream)
    for name in SHAPES:
        found = None if data is None else [data[each].get(name) for each in vectors.tasks]
        statistics = None if found is None or found[0] is None else torch.stack(found)
        context = MergeContext(name, vectors.tasks, survey, statistics, task=task)
        yield name, rule.parts(stream.stack(name), context), rule.combine(stream.stack(name), context)


def assert_sums(way, vectors, tolerance=1e-5, **options):
    for name, parts, total in made(way, vectors, **options):
        assert parts.shape == (len(vectors), *SHAPES[name])
        assert parts.dtype == total.dtype == torch.float32
        largest = float(torch.cat([parts, total[None]]).abs().max())
        error = float((parts.double().sum(0) - total).abs().max())
        assert error <= tolerance * largest, f"{name}: {error} beside {largest}"


@EVERY_WAY
def test_they_sum_to_what_is_combined(way):
    assert_sums(way, vectors_for(way["name"]))


@EVERY_WAY
def test_what_is_pruned_has_no_part(way):
    vectors = vectors_for(way["name"])
    for name, parts, _ in made(way, vectors, pruned="a"):
        assert not parts[0].any() or way["name"] in CENTRED, name
    assert_sums(way, vectors, pruned="a")


@pytest.mark.parametrize("way", [way for way in WAYS if way["name"] not in TWO_TASKS], ids=str)
def test_one_task_has_all(way):
    assert_sums(way, vectors_for(way["name"]).select(["b"]))


CHANGES = {
    "equal": lambda seed, size: changed(7, size),
    "opposite": lambda seed, size: changed(7, size if seed % 2 else -size),
    "rank 1": lambda seed, size: {name: torch.full(shape, size * seed) for name, shape in SHAPES.items()},
    "tiny": lambda seed, size: changed(seed, 1e-30 * size),
    "huge": lambda seed, size: changed(seed, 1e12 * size),
    "zero": lambda seed, size: changed(seed, 0.0),
}


@pytest.mark.parametrize("way", [way for way in WAYS if not way.keys() & ASKED.keys() - {"plus_plus"}], ids=str)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_they_sum_up_where_task_vectors_degenerate(way, change):
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    tasks = {task: change(seed, 0.1) for seed, task in enumerate(task_names(way["name"]), start=1)}
    assert_sums(way, open_vectors(zeros, tasks))


@pytest.mark.parametrize("rule", [name for name in sorted(RULES) if RULES[name].has_parts() and RULES[name].per_task])
def test_those_of_a_tasks_own_model_sum_to_it(rule):
    assert_sums({"name": rule}, vectors_for(rule), task="b")


@pytest.mark.parametrize("rule", [name for name in sorted(RULES) if not RULES[name].has_parts()])
def test_a_rule_without_parts_says_why(rule):
    assert RULES[rule].no_parts
    with pytest.raises(NotImplementedError, match=RULES[rule].no_parts):
        make_rule(rule).parts(torch.zeros(1, 1), MergeContext("w", ("a",)))

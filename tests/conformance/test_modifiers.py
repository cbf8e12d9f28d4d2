"""What acts before, around and after a rule, in the stated order: every modifier with every rule, and all together.

A new rule or modifier is tested here without an edit. Started as a script, with a folder, this is one of two processes.
"""

import hashlib
import os
import sys
from functools import cache
from itertools import product
from pathlib import Path
from random import Random

import pytest
import torch
import torch.distributed as dist
from _helpers.battery import SHAPES, experts, statistics_of
from _helpers.composed import composed
from _helpers.every_rule import TWO_TASKS
from _helpers.processes import launch, report
from _helpers.states import as_bytes, assert_same_bits

from lwptv_lightning import LiNeS, MergeRecipe, merge
from lwptv_lightning.engine import Execution, Ranks
from lwptv_lightning.modifiers import modifier_entries
from lwptv_lightning.recipe import MODIFIERS
from lwptv_lightning.rules import RULES

CHOICES = {field: [each.name for each in modifier_entries() if each.field == field] for field in MODIFIERS}
ALONE_BESIDE = [{field: name} for field in MODIFIERS for name in CHOICES[field]]
BESIDE = [
    {field: name for field, name in zip(MODIFIERS, names, strict=True) if name is not None}
    for names in product(*([None, *CHOICES[field]] for field in MODIFIERS))
]
FEW = {"a": {"*": 0.5}, "b": {"*": 1.5}, "c": {"*": 0.0}, "d": {"*": 1.0}}
PRUNED = {
    "nothing": {},
    "mask": {"ratio": 0.5},
    "elements": {"elements": {"ratio": 0.4}},
    "parts": {"ratio": 0.5, "prune_on": "parts"},
    "coefficients": {
        "prune_on": "parts",
        "coefficients": {f"task{task}": own for task, own in enumerate(FEW.values())},
    },
}
SCALED = [
    {"scale": 0.7},
    {"scale": 0.7, "layer_scaling": LiNeS(alpha=None)},
    {"scale": -0.5, "layer_scaling": {"blocks.0.mlp.fc1": 0.25, "stem.conv": 2.0}},
]


def refuses(rule, beside):
    """Whether a rule is not to be had beside modifiers: what makes singular values equal has none that tell apart."""
    own = RULES[rule].works_on_matrices() or RULES[rule].per_task or RULES[rule].needs
    inside = bool("subspace" in beside and own)
    return inside or (beside.get("calibrate") == "svc" and rule in ("iso_c", "iso_cts"))


def kinds():
    """The first rule of each kind: by what it sees at once, whether it surveys the model, whether it needs data."""
    found = {}
    for name, rule in sorted(RULES.items()):
        if name not in TWO_TASKS and rule.has_parts():
            kind = (rule().unit, rule.works_on_matrices(), rule.surveys_model(), rule.needs)
            found.setdefault(kind, name)
    return list(found.values())


def together():
    """Each set of modifiers with each way to prune, by rules of all kinds in turn, with each way to scale layers."""
    for turn, (beside, (way, pruned)) in enumerate(product(BESIDE, PRUNED.items())):
        rules = [rule for rule in kinds() if not refuses(rule, beside)]
        fields = {**beside, **pruned, **SCALED[turn % len(SCALED)]}
        yield pytest.param(rules[turn % len(rules)], fields, id="-".join([*beside.values(), way]))


CASES = list(together())


def vectors_for(rule):
    return experts(2, "different") if rule in TWO_TASKS else experts(4, "mixed")


# Once, as their own last bits depend on the number of threads.
data_for = cache(lambda rule: statistics_of(rule, vectors_for(rule)))


def merged(rule, fields, **options):
    vectors = vectors_for(rule)
    recipe = MergeRecipe(rule, **fields)
    return merge(vectors, recipe, data=data_for(rule), **options)


def assert_composed(rule, fields):
    vectors = vectors_for(rule)
    recipe = MergeRecipe(rule, **fields)
    expected = composed(vectors, recipe, data_for(rule))
    result = merged(rule, fields)
    for name in SHAPES:
        change = (expected[name] - vectors.base(name)).abs().max()
        assert float((result[name] - expected[name]).abs().max()) <= 1e-5 * float(change) + 1e-6, name


@pytest.mark.parametrize("beside", ALONE_BESIDE, ids=lambda beside: "-".join(beside.values()))
@pytest.mark.parametrize("rule", sorted(RULES))
def test_any_rule_takes_a_modifier_or_says_at_once_why_not(rule, beside):
    if refuses(rule, beside):
        (field,) = beside
        with pytest.raises(ValueError, match=f"{field}.*{rule}|{rule}.*{field}"):
            MergeRecipe(rule, **beside)
    else:
        assert_composed(rule, {"scale": 0.7, **beside})


@pytest.mark.parametrize(("rule", "fields"), CASES)
def test_all_act_in_the_stated_order(rule, fields):
    assert_composed(rule, fields)


@pytest.mark.parametrize("beside", BESIDE[1:], ids=lambda beside: "-".join(beside.values()))
@pytest.mark.parametrize(("number", "kind"), [(1, "different"), (2, "one zero"), (2, "equal"), (20, "mixed")])
def test_any_number_of_tasks_of_any_kind_is_taken(beside, number, kind):
    vectors = experts(number, kind)
    recipe = MergeRecipe("task_arithmetic", **beside)  # no choice between values, which rounding could turn
    result = merge(vectors, recipe)
    assert all(torch.isfinite(value).all() for value in result.values())
    double = merge(experts(number, kind, torch.float64), recipe.replace(dtype="float64"))
    for name in SHAPES:
        change = float((double[name] - vectors.base(name)).abs().max())
        assert float((double[name] - result[name]).abs().max()) <= 1e-4 * change + 1e-6, name
    half = merge(experts(number, kind, torch.bfloat16), recipe)
    assert {value.dtype for value in half.values()} == {torch.bfloat16}
    assert all(torch.isfinite(value).all() for value in half.values())


@pytest.mark.parametrize("beside", BESIDE[1:], ids=lambda beside: "-".join(beside.values()))
def test_zero_task_vectors_give_the_base(beside):
    zero = experts(2, "zero")
    assert_same_bits(merge(zero, MergeRecipe("task_arithmetic", **beside)), {name: zero.base(name) for name in SHAPES})


@pytest.mark.parametrize("beside", BESIDE[1:], ids=lambda beside: "-".join(beside.values()))
def test_recipes_with_it_survive_json_and_are_named_by_it(beside):
    recipe = MergeRecipe("ties", **beside)
    assert MergeRecipe.from_json(recipe.to_json()) == recipe
    assert hash(MergeRecipe.from_dict(recipe.to_dict())) == hash(recipe)
    told = [MergeRecipe("ties", **each).describe() for each in BESIDE]
    assert len(set(told)) == len(told)


def test_blocks_and_threads_change_no_bit():
    expected, before = alone(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert digests(execution=Execution(block_bytes=400)) == expected
    finally:
        torch.set_num_threads(before)


def digests(**options):
    """Of what some of the cases merge, drawn at random."""
    states = (merged(*case.values, **options) for case in Random(1).sample(CASES, 24))
    bits = (b"".join(as_bytes(state[name]) for name in SHAPES) for state in states)
    return [hashlib.sha256(each).hexdigest() for each in bits]


alone = cache(digests)


def work(folder):
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    report(folder, rank, digests(ranks=Ranks.current()))
    dist.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]))


def test_two_processes_give_the_bits_of_one(tmp_path):
    assert launch(__file__, tmp_path, ranks=2) == [alone()] * 2

"""Experts of many kinds and numbers, with tensors of all proportions and of low rank, on which any merge is tried."""

import functools

import torch

from _helpers.every_rule import TWO_TASKS, made_up_fisher, made_up_gram
from _helpers.states import open_vectors, random_state
from lwptv_lightning.rules import RULES

SHAPES = {
    "stem.conv.weight": (4, 3, 2, 2),
    "stem.conv.bias": (4,),
    "blocks.0.attn.qkv.weight": (12, 4),
    "blocks.0.attn.proj.weight": (6, 6),
    "blocks.0.mlp.fc1.weight": (21, 24),
    "blocks.0.mlp.fc2.weight": (4, 10),
    "blocks.1.attn.qkv.weight": (7, 1),
    "blocks.1.attn.proj.weight": (8, 8),
    "blocks.1.mlp.fc1.weight": (9, 5, 1, 1),
}
"""A convolution, a vector, and matrices tall, square, wide, of more rows than 20 tasks, of one column."""
DEFICIENT = "blocks.1.attn.proj.weight"
"""The matrix whose task vectors have rank 2."""
KINDS = ("different", "one zero", "equal", "mixed", "zero")
"""What the task vectors are to each other; of mixed ones the last is zero, and the two before it are equal."""


def crowds_for(rule):
    """Numbers and kinds of task vectors that a rule takes: one, two, eight, twenty."""
    two = [(2, kind) for kind in KINDS[:3]]
    return two if rule in TWO_TASKS else [(1, "different"), *two, (8, "mixed"), (20, "mixed")]


@functools.cache
def experts(number, kind="different", dtype=torch.float32):
    """Task vectors, not to be written to."""
    base = {name: (256 * value).round() / 256 for name, value in random_state(99, shapes=SHAPES).items()}
    states = {}
    for task in range(number):
        twin = kind == "equal" or (kind == "mixed" and task == number - 2)
        change = _change(task - 1 if twin and kind == "mixed" else 0 if twin else task)
        if kind == "zero" or (kind in ("one zero", "mixed") and task == number - 1):
            change = {name: torch.zeros_like(value) for name, value in change.items()}
        states[f"task{task}"] = {name: (base[name] + change[name]).to(dtype) for name in SHAPES}
    return open_vectors({name: value.to(dtype) for name, value in base.items()}, states)


def _change(seed):
    change = random_state(seed, 0.1, SHAPES)
    # Few bits, so that the base's rounding adds no direction.
    left, right = random_state(1000 + seed, 8.0, {"left": (8, 2), "right": (2, 8)}).values()
    change[DEFICIENT] = left.round() @ right.round() / 1024
    return change


def statistics_of(rule, vectors):
    """Make up what a rule would have been given of data; None for most."""
    made = {"fisher": made_up_fisher, "gram": made_up_gram}.get(RULES[rule].needs)
    return None if made is None else {task: made(vectors, seed) for seed, task in enumerate(vectors.tasks)}

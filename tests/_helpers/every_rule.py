"""Task vectors, and statistics of made-up data, on which any registered merging rule can be tried."""

import torch

from _helpers.states import open_vectors, plus, random_state
from lwptv_lightning.rules import RULES

SHAPES = {
    "stem.conv.weight": (3, 2, 2, 2),
    "stem.conv.bias": (3,),
    "blocks.0.attn.qkv.weight": (9, 4),
    "blocks.0.attn.proj.weight": (4, 4),
    "blocks.0.mlp.fc1.weight": (6, 4),
    "blocks.0.mlp.fc2.weight": (4, 6),
    "blocks.1.attn.qkv.weight": (1, 5),
    "blocks.1.attn.proj.weight": (5, 1),
    "blocks.1.mlp.fc1.weight": (1, 1),
    "blocks.1.mlp.fc1.bias": (1,),
    "scale": (),
}
"""Convolution, matrices of every proportion, a vector and a scalar."""

TWO_TASKS = {"nuslerp"}
"""Rules that merge two tasks and no more."""


def task_names(rule):
    """Name as many tasks as a rule takes, three at most."""
    return ("a", "b") if rule in TWO_TASKS else ("a", "b", "c")


def changed(seed, size):
    """Random changes of all tensors."""
    return random_state(seed, size, SHAPES)


def vectors_for(rule, dtype=torch.float32, change=changed, order=None):
    """Return task vectors for a rule."""
    base = random_state(0, shapes=SHAPES)
    tasks = {task: plus(base, change(seed, 0.1)) for seed, task in enumerate(task_names(rule), start=1)}
    names = list(SHAPES if order is None else order)
    cast = [{name: state[name].to(dtype) for name in names} for state in (base, *tasks.values())]
    return open_vectors(cast[0], dict(zip(tasks, cast[1:], strict=True)))


def statistics_for(rule, vectors):
    """Make up what a rule would have been given of data; None for most."""
    makers = {"": None, "fisher": made_up_fisher, "gram": made_up_gram}
    maker = makers[RULES[rule].needs]
    return None if maker is None else {task: maker(vectors, seed) for seed, task in enumerate(vectors.tasks)}


def made_up_fisher(vectors, seed):
    """Positive numbers in the shapes of the weights."""
    shapes = {name: vectors.headers[name].shape for name in vectors.names}
    return {name: values.square() + 0.1 for name, values in random_state(seed, shapes=shapes).items()}


def made_up_gram(vectors, seed):
    """Mean outer products of made-up inputs of every matrix."""
    matrices = {name: vectors.headers[name].shape for name in vectors.names}
    inputs = {name: (8, shape[1]) for name, shape in matrices.items() if len(shape) == 2}
    return {name: rows.T @ rows / len(rows) for name, rows in random_state(seed, shapes=inputs).items()}

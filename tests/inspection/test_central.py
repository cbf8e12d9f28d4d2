import torch

from lwptv_lightning import open_checkpoint
from lwptv_lightning.inspection import central_checkpoint


def opened(states):
    return {name: open_checkpoint(state) for name, state in states.items()}


def tuned(base, seed, size=0.1):
    drawn = torch.Generator().manual_seed(seed)
    return {name: value + size * torch.randn(value.shape, generator=drawn) for name, value in base.items()}


BASE = {"a.weight": torch.ones(20, 30), "b.weight": torch.zeros(7, 9), "b.bias": torch.zeros(7)}


def test_the_base_is_in_the_midst_of_what_was_made_of_it():
    states = {"one": tuned(BASE, 1), "base": BASE, "two": tuned(BASE, 2), "three": tuned(BASE, 3, 0.3)}
    assert central_checkpoint(opened(states)) == "base"


def test_classifiers_of_other_shapes_do_not_matter():
    states = {name: tuned(BASE, seed) | {"head.weight": torch.ones(seed, 4)} for seed, name in enumerate("xyz", 1)}
    assert central_checkpoint(opened(states | {"base": BASE})) == "base"


def test_where_it_cannot_be_told_none_is_named():
    assert central_checkpoint(opened({"base": BASE, "x": tuned(BASE, 1)})) is None
    assert central_checkpoint(opened({name: tuned(BASE, seed) for seed, name in enumerate("xyz")})) is None

"""Where an adapter belongs: the base whose tensors it changes, and by what names that has them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import nn

from lwptv_lightning.checkpoints.adapter_names import AdapterNames
from lwptv_lightning.checkpoints.checkpoint import Checkpoint, TensorHeader
from lwptv_lightning.checkpoints.names import _likely_prefixes
from lwptv_lightning.functional import plain_module, plain_name

Ties: TypeAlias = Callable[[Checkpoint], list[list[str]]]
_UNKNOWN = TensorHeader((), torch.float32)
_TENSORS = ("weight", "in_proj_weight")
"""What the weight of an adapted module is called; the second is that of an attention's fused projections."""


@dataclass(frozen=True)
class Home:
    """A base, and how names of an adapter become its names.

    Args:
        base: The base.
        rename: From a name in the model that the adapter was trained on to that in the base.
        modules: Modules by path in the base, as far as they are at hand.
        find_ties: Returns groups of names of a base that are one tensor; the base may lack some of them.
    """

    base: Checkpoint
    rename: Callable[[str], str]
    modules: Mapping[str, nn.Module]
    find_ties: Ties

    @cached_property
    def tied(self) -> list[list[str]]:
        """Groups of names that are one tensor."""
        return self.find_ties(self.base)

    def header(self, name: str) -> TensorHeader | None:
        """Return the header of the base's tensor, or None where it has none of that name."""
        return self.base.headers.get(name)


def home_of(names: AdapterNames, bases: Sequence[Checkpoint], modules: Sequence[nn.Module], find_ties: Ties) -> Home:
    """Return the base among some that has most of the modules of an adapter, under a prefix or without one."""
    paths = [module.path for module in names.modules] + list(names.rows)
    wanted = [f"{path}.{tensor}" for path in paths for tensor in _TENSORS] + list(names.whole)
    best, most = Home(bases[0], _same, {}, find_ties), 0
    for base in bases:
        for rename in _renamings(wanted, base):
            found = sum(rename(name) in base.headers for name in wanted)
            if found > most:
                best, most = Home(base, rename, _modules_by_path(modules), find_ties), found
    return best


def _same(name: str) -> str:
    return name


def _renamings(wanted: Collection[str], base: Checkpoint) -> list[Callable[[str], str]]:
    """Return the ways in which names may become a base's."""
    found: list[Callable[[str], str]] = [_same]
    # Where several prefixes lead there, what is amiss is told later.
    if len(without := _likely_prefixes(dict.fromkeys(wanted, _UNKNOWN), set(base.names))) == 1:
        found.append(lambda name: name.removeprefix(without[0]))
    if len(within := _likely_prefixes(base.headers, set(wanted))) == 1:
        found.append(lambda name: within[0] + name)
    return found


def _modules_by_path(modules: Sequence[nn.Module]) -> dict[str, nn.Module]:
    return {plain_name(path): each for module in modules for path, each in plain_module(module).named_modules()}

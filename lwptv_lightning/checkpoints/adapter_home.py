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
from lwptv_lightning.checkpoints.library_names import model_names
from lwptv_lightning.checkpoints.names import _likely_prefixes
from lwptv_lightning.checkpoints.skeleton import skeleton_of
from lwptv_lightning.functional import plain_module, plain_name

Ties: TypeAlias = Callable[[Checkpoint, Sequence[nn.Module]], list[list[str]]]
"""Returns the groups of names that are one tensor of a base, some of which it may lack; modules tell, or its values."""
_UNKNOWN = TensorHeader((), torch.float32)
WEIGHTS = ("weight", "in_proj_weight")
"""What the weight of an adapted module is called; the second is that of an attention's fused projections."""


@dataclass(frozen=True)
class AdapterHome:
    """A base, and how names of an adapter become its names.

    Args:
        base: The base.
        rename: From a name in the model that the adapter was trained on to that in the base.
        given: Modules that the base is, or is loaded into.
        find_ties: Finds the ties of a base.
    """

    base: Checkpoint
    rename: Callable[[str], str]
    given: Sequence[nn.Module]
    find_ties: Ties

    def header(self, name: str) -> TensorHeader | None:
        """Return the header of the base's tensor, or None where it has none of that name."""
        return self.base.headers.get(name)

    @cached_property
    def modules(self) -> Mapping[str, nn.Module]:
        """Modules by path in the base, of those that are given."""
        return {plain_name(path): each for module in self.given for path, each in plain_module(module).named_modules()}

    @cached_property
    def _skeleton(self) -> nn.Module | None:
        return skeleton_of(self.base)

    @cached_property
    def described(self) -> Mapping[str, nn.Module]:
        """Modules by path in the base, of the model that its configuration describes, which takes long to build."""
        if (model := self._skeleton) is None:
            return {}
        found = dict(model.named_modules())
        for name, own in model_names(model, self.base.names).items():
            found[name.rpartition(".")[0]] = model.get_submodule(own.rpartition(".")[0])
        return found

    @cached_property
    def tied(self) -> list[list[str]]:
        """Groups of names of the base that are one tensor: in a module that is given, as described, or by values."""
        found = self.find_ties(self.base, self.given)
        if not found or found[0][0].rpartition(".")[0] in self.modules or self._skeleton is None:
            return found
        # Of a head that was untied, all values may still be those of the embedding.
        described = [set(group) for group in self.tied_by_description]
        both = ([name for name in group if name in other] for group in found for other in described)
        return [group for group in both if len(group) > 1]

    @cached_property
    def tied_by_description(self) -> list[list[str]]:
        """The same, as the model has them that the base's configuration describes; the base may lack some of them."""
        if (model := self._skeleton) is None:
            return []
        own = {new: name for name, new in model_names(model, self.base.names).items()}
        return [[own.get(name, name) for name in group] for group in self.find_ties(self.base, [model])]


def home_of(
    names: AdapterNames, bases: Sequence[Checkpoint], given: Sequence[nn.Module], find_ties: Ties
) -> AdapterHome:
    """Return the base among some that has most of the modules of an adapter, by one of the ways that names may differ.

    That is a prefix, or what transformers renames between its files and its models.
    """
    paths = [module.path for module in names.modules] + list(names.rows)
    wanted = [f"{path}.{tensor}" for path in paths for tensor in WEIGHTS] + list(names.whole)
    best, most = AdapterHome(bases[0], _same, given, find_ties), 0
    for base in bases:
        for rename in _renamings(wanted, base.headers):
            found = sum(rename(name) in base.headers for name in wanted)
            if found > most:
                best, most = AdapterHome(base, rename, given, find_ties), found
    layers = [path for path in paths if any(part.isdigit() for part in path.split("."))]
    if all(any(best.rename(f"{path}.{tensor}") in best.base.headers for tensor in WEIGHTS) for path in layers):
        return best
    for base in bases:
        for model in (*map(plain_module, given), skeleton_of(base)):
            files = {} if model is None else {own: name for name, own in model_names(model, base.names).items()}
            for rename in _renamings(wanted, {own: base.headers[name] for own, name in files.items()}):
                found = sum(rename(name) in files for name in wanted)
                if found > most:
                    best, most = AdapterHome(base, _Chain(rename, files), given, find_ties), found
    return best


@dataclass(frozen=True)
class _Chain:
    """Renames twice, the second time as a mapping tells."""

    first: Callable[[str], str]
    second: Mapping[str, str]

    def __call__(self, name: str) -> str:
        renamed = self.first(name)
        return self.second.get(renamed, renamed)


def _same(name: str) -> str:
    return name


def _renamings(wanted: Collection[str], headers: Mapping[str, TensorHeader]) -> list[Callable[[str], str]]:
    """Return the ways in which names may become those of a base."""
    found: list[Callable[[str], str]] = [_same]
    # Where several prefixes lead there, what is amiss is told later.
    if len(without := _likely_prefixes(dict.fromkeys(wanted, _UNKNOWN), set(headers))) == 1:
        found.append(lambda name: name.removeprefix(without[0]))
    if len(within := _likely_prefixes(headers, set(wanted))) == 1:
        found.append(lambda name: within[0] + name)
    return found

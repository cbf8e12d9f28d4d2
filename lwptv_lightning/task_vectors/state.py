"""Tell weights from state: floating tensors that a model keeps beside its weights and that nobody trains."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lwptv_lightning.functional import plain_name
from lwptv_lightning.registry import matches

_STATISTICS = ("running_mean", "running_var")
_COMPUTED = ("*inv_freq", "*attn_mask", "*masked_bias", "*num_batches_tracked")
"""What a model computes itself: rotary frequencies, masks, and counters that were stored as floating numbers."""
_SPECTRAL = re.compile(r"(.*weight)_[uv]|(.*parametrizations\.\w+\.)\d+\._[uv]")


@dataclass(frozen=True)
class State:
    """Floating tensors that are no weights.

    Attributes:
        averaged: Running statistics of batch normalisation, and buffers that a model changes as it is trained, such as
            moving averages: in a merged model these are means over the tasks.
        computed: What a model computes itself, such as masks and counters: these stay the base's.
    """

    averaged: frozenset[str]
    computed: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.averaged or self.computed)

    def __contains__(self, name: object) -> bool:
        return name in self.averaged or name in self.computed


def state_among(
    names: Collection[str], model: nn.Module | None = None, read: Callable[[str], Tensor] | None = None
) -> State:
    """Find the state among the names of floating tensors.

    Names tell running statistics and what a model computes; a model tells its other buffers. Parameters are weights,
    among them the magnitudes of a weight norm.

    Args:
        names: Those of the floating tensors of a checkpoint.
        model: The module that they belong to.
        read: Reads a tensor by its name. A buffer that only the model tells is computed where it is not finite, as a
            mask is.

    Example:
        >>> found = state_among(["bn.weight", "bn.running_mean", "bn.running_var", "running_mean", "rope.inv_freq"])
        >>> sorted(found.averaged), sorted(found.computed)
        (['bn.running_mean', 'bn.running_var'], ['rope.inv_freq'])
    """
    known = set(names)
    parameters, buffers = _tensors_of(model)
    computed = {name for name in known if _is_computed(name, known)}
    averaged = running_statistics(known) - parameters
    for name in sorted(buffers & known - computed - averaged):
        finite = read is None or bool(torch.isfinite(read(name).float()).all())
        (averaged if finite else computed).add(name)
    return State(frozenset(averaged), frozenset(computed - parameters))


def running_statistics(names: Iterable[str]) -> set[str]:
    """Return the running means and variances of batch normalisation among the names of tensors.

    These end in ``running_mean`` or ``running_var`` and have the other beside them.
    `lwptv_lightning.callbacks.RecalibrateBatchNorm` measures them anew on data.

    Example:
        >>> sorted(running_statistics(["bn.weight", "bn.running_mean", "bn.running_var", "running_mean"]))
        ['bn.running_mean', 'bn.running_var']
    """
    known = set(names)
    modules = {name.removesuffix(_STATISTICS[0]) for name in known if name.rpartition(".")[2] == _STATISTICS[0]}
    pairs = ({module + own for own in _STATISTICS} for module in modules)
    return {name for pair in pairs if pair <= known for name in pair}


def _is_computed(name: str, known: Collection[str]) -> bool:
    if spectral := _SPECTRAL.fullmatch(name):
        # Beside the weight that the norm divides.
        return f"{spectral[1]}_orig" in known if spectral[1] else f"{spectral[2]}original" in known
    return matches(name, _COMPUTED)


def _tensors_of(model: nn.Module | None) -> tuple[set[str], set[str]]:
    """Return the names of a model's parameters and of its floating buffers that a checkpoint holds."""
    if model is None:
        return set(), set()
    state = model.state_dict(keep_vars=True)
    floating = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}
    parameters = {name for name, value in floating.items() if isinstance(value, nn.Parameter)}
    # With, and without, what `torch.compile` puts into names.
    found = (parameters, floating.keys() - parameters)
    parameters, buffers = ({each for name in names for each in (name, plain_name(name))} for names in found)
    return parameters, buffers

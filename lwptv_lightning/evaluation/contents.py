"""`Contents`: what a merge put into a model, so that a file says whether the model still is that."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lwptv_lightning.checkpoints import Provenance, TensorHeader
from lwptv_lightning.functional import plain_state
from lwptv_lightning.merging import in_dtype, whole_state
from lwptv_lightning.task_vectors import tied_in

_LANES = 61
"""How many sums are kept apart, so that elements that change places show; a prime, unlike the widths of tensors."""
_ODD = 0x9E3779B97F4A7C15 - 2**64
"""Spreads bits over a whole number; from the golden ratio."""


@dataclass(frozen=True)
class Contents:
    """What a model held when a merge was installed.

    Attributes:
        dtypes: Tensor name to the base's dtype, in which it is stored.
        sums: Tensor name to the dtype in which it was held and a sum over its bits, which tells whether it has changed,
            in whatever dtype that holds as much it is held since.
        tasks: Whose task vectors were merged.
        apart: Tensors of the base's classifier, where the tasks have their own.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> contents = Contents.of(model, TensorHeader.of_all(model.state_dict()))
        >>> contents.changed_in(model.double())
        []
        >>> nn.init.ones_(model.bias).item(), contents.changed_in(model)
        (1.0, ['bias'])
    """

    dtypes: Mapping[str, str] = field(default_factory=dict)
    sums: Mapping[str, str] = field(default_factory=dict)
    tasks: Sequence[str] = ()
    apart: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        headers: Mapping[str, TensorHeader],
        tasks: Sequence[str] = (),
        apart: Sequence[str] = (),
    ) -> Contents:
        """Return what a model holds now, of a base with these headers; all processes call it for a sharded one."""
        dtypes = {name: str(header.dtype).removeprefix("torch.") for name, header in headers.items()}
        return cls(dtypes, _sums_of(model), tuple(tasks), tuple(apart))

    def changed_in(self, model: nn.Module) -> list[str]:
        """Return the tensors that a model holds with other values than then."""
        dtypes = {name: sums.partition(" ")[0] for name, sums in self.sums.items()}
        return [
            name for name, sums in (_sums_of(model, dtypes) if dtypes else {}).items() if self.sums.get(name) != sums
        ]

    def describe(self, provenance: Provenance, model: nn.Module, aside: Container[str] = ()) -> Provenance:
        """Return a provenance that says what of a model is not as merged, and in which dtype it was evaluated."""
        changed = [name for name in self.changed_in(model) if name not in aside]
        narrower = {
            str(value.dtype).removeprefix("torch.")
            for name, value in plain_state(model).items()
            if name in self.dtypes and value.is_floating_point() and value.dtype.itemsize < self._dtype(name).itemsize
        }
        twins = {name: first for name, first in self._twins(model).items() if name not in aside}
        return replace(provenance, changed=changed, evaluated_in=sorted(narrower), twins=twins)

    def stored(self, model: nn.Module, aside: Container[str] = ()) -> dict[str, Tensor]:
        """Return a model's tensors in the base's dtypes, but for some that stand aside."""
        state = {name: value for name, value in whole_state(model).items() if name not in aside}
        first_names = {name: name for name in self.dtypes} | self._twins(model)
        return {
            name: in_dtype(name, value, self._dtype(first_names[name])) if name in first_names else value
            for name, value in state.items()
        }

    def _twins(self, model: nn.Module) -> dict[str, str]:
        """Return further names of a model's tied weights that the base has not, each with one that it has."""
        groups = tied_in(model, plain_state(model)) if self.dtypes else []
        known = ([next((name for name in group if name in self.dtypes), ""), *group] for group in groups)
        return {name: first for first, *group in known for name in group if first and name not in self.dtypes}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "dtypes": dict(self.dtypes),
            "sums": dict(self.sums),
            "tasks": tuple(self.tasks),
            "apart": tuple(self.apart),
        }

    def _dtype(self, name: str) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtypes[name])
        return dtype


def _sums_of(model: nn.Module, dtypes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return for each tensor its dtype, or another to see it in, and a sum over its bits."""
    found = {}
    for name, value in plain_state(model).items():
        if isinstance(value, Tensor) and not value.is_meta:
            dtype = (dtypes or {}).get(name, str(value.dtype).removeprefix("torch."))
            found[name] = f"{dtype} {_sum_of(value.detach(), getattr(torch, dtype))}"
    return found


def _sum_of(value: Tensor, dtype: torch.dtype) -> int:
    """Return a sum over all bits in a dtype, weighted by place, the same on any device and in any shards."""
    flat = (value.full_tensor() if isinstance(value, DTensor) else value).to(dtype).contiguous().reshape(-1)
    aligned = flat.nbytes % 8 == flat.storage_offset() * flat.itemsize % 8 == 0
    bits = flat.view(torch.int64 if aligned else torch.uint8)
    most = len(bits) // _LANES * _LANES
    sums = bits[:most].view(-1, _LANES).sum(0, dtype=torch.int64)  # integers wrap around
    rest = bits[most:].to(torch.int64)
    places = torch.arange(2 * _LANES, device=bits.device).add_(1) * _ODD
    return int((sums * places[:_LANES]).sum() + (rest * places[_LANES:][: len(rest)]).sum())

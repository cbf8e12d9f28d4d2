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

_AT_ONCE = 1 << 17
"""Elements that are summed up at once."""
_ODD = 0x9E3779B1 - 2**32
"""Spreads bits over a whole number; from the golden ratio."""


@dataclass(frozen=True)
class Contents:
    """What a model held when a merge was installed.

    Attributes:
        dtypes: Tensor name to the base's dtype, in which it is stored.
        sums: Tensor name to a sum over its bits, which tells whether it has changed, in whatever dtype it is held.
        tasks: Whose task vectors were merged.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> contents = Contents.of(model, TensorHeader.of_all(model.state_dict()))
        >>> contents.changed_in(model.double())
        []
        >>> nn.init.ones_(model.bias).item(), contents.changed_in(model)
        (1.0, ['bias'])
    """

    dtypes: Mapping[str, str] = field(default_factory=dict)
    sums: Mapping[str, int] = field(default_factory=dict)
    tasks: Sequence[str] = ()

    @classmethod
    def of(cls, model: nn.Module, headers: Mapping[str, TensorHeader], tasks: Sequence[str] = ()) -> Contents:
        """Return what a model holds now, of a base with these headers; all processes call it for a sharded one."""
        dtypes = {name: str(header.dtype).removeprefix("torch.") for name, header in headers.items()}
        return cls(dtypes, _sums_of(model), tuple(tasks))

    def changed_in(self, model: nn.Module) -> list[str]:
        """Return the tensors that a model holds with other values than then."""
        return [name for name, sums in (_sums_of(model) if self.sums else {}).items() if self.sums.get(name) != sums]

    def describe(self, provenance: Provenance, model: nn.Module, aside: Container[str] = ()) -> Provenance:
        """Return a provenance that says what of a model is not as merged, and in which dtype it was evaluated."""
        changed = [name for name in self.changed_in(model) if name not in aside]
        narrower = {
            str(value.dtype).removeprefix("torch.")
            for name, value in plain_state(model).items()
            if name in self.dtypes and value.is_floating_point() and value.dtype.itemsize < self._dtype(name).itemsize
        }
        return replace(provenance, changed=changed, evaluated_in=sorted(narrower))

    def stored(self, model: nn.Module, aside: Container[str] = ()) -> dict[str, Tensor]:
        """Return a model's tensors in the base's dtypes, but for some that stand aside."""
        state = {name: value for name, value in whole_state(model).items() if name not in aside}
        return {
            name: in_dtype(name, value, self._dtype(name)) if name in self.dtypes else value
            for name, value in state.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"dtypes": dict(self.dtypes), "sums": dict(self.sums), "tasks": tuple(self.tasks)}

    def _dtype(self, name: str) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtypes[name])
        return dtype


def _sums_of(model: nn.Module) -> dict[str, int]:
    state = plain_state(model)
    return {name: _sum_of(value) for name, value in state.items() if isinstance(value, Tensor) and not value.is_meta}


def _sum_of(value: Tensor) -> int:
    """Return a sum over the mixed bits of all elements, weighted by their places, on any device or in any shards."""
    own = value.detach()
    flat = (own.full_tensor() if isinstance(own, DTensor) else own).reshape(-1)
    total = 0
    for start in range(0, len(flat), _AT_ONCE):
        part = flat[start : start + _AT_ONCE]
        # A float32 holds every narrower value exactly, and a wider one that came of it.
        single = part.float()
        exact = part.dtype.itemsize < 4 or part.dtype == torch.float32 or bool((single == part).all())
        bits = single.view(torch.int32) if exact else part.double().view(torch.int32)
        mixed = (bits ^ (bits >> 15)) * _ODD  # integers wrap around
        mixed ^= mixed >> 13
        places = torch.arange(2 * start + 1, 2 * (start + len(bits)), 2, dtype=torch.int64, device=bits.device)
        total += int((mixed * places.int()).sum())
    return total % 2**63

"""What an adapter holds of a merge, made one tensor after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from lwptv_lightning.checkpoints import (
    FACTORS,
    MODULE,
    ROOT,
    WHOLE,
    AdapterLayout,
    Home,
    SafetensorsWriter,
    Spool,
    factor_matrix,
    factor_tensors,
    some_of,
)
from lwptv_lightning.functional import factored_error, low_rank_factors
from lwptv_lightning.merging.combine import Piece
from lwptv_lightning.merging.plan import MergePlan
from lwptv_lightning.registry import shown, steps_of


@dataclass(frozen=True)
class AdaptedLayer:
    """The factors of one layer.

    Attributes:
        name: The tensor's name in the base.
        rank: Their rank.
        norm: Frobenius norm of the layer's merged task vector.
        error: Frobenius norm of what the factors' product, as it is stored, lacks of it, relative to that norm.
    """

    name: str
    rank: int
    norm: float
    error: float


@dataclass
class Factors:
    """What an adapter holds of a merge; filled by `make`, written by `write`.

    Args:
        plan: The merge.
        layout: Where the adapter holds the change of each tensor.
        rank: As `low_rank_factors` takes it.
        dtype: The factors' dtype.
        spool: Where the tensors wait.

    Attributes:
        layers: The layers with factors.
        ranks: Path of a module to the rank of its factors.
        modules: Paths of the modules that are held whole.
        whole: Name to home of the tensors that are held under their own names.
        dropped: Name of a changed tensor that has no home to the norm of its change.
        square: Squared norm of the whole merged task vector, and of what is lost of it.
    """

    plan: MergePlan
    layout: AdapterLayout
    rank: float | None
    dtype: torch.dtype
    spool: Spool
    layers: list[AdaptedLayer] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    whole: dict[str, Home] = field(default_factory=dict)
    dropped: dict[str, float] = field(default_factory=dict)
    square: float = 0.0
    lost: float = 0.0

    def make(self, *, drop_rest: bool) -> None:
        """Make all that the adapter holds.

        Raises:
            ValueError: It cannot hold a changed tensor, and ``drop_rest`` is false; those are made first.
        """
        names = [name for name in self.plan.owner if name in self.plan.jobs]
        homes = {name: self._homes(name) for name in names}
        self.plan.warn_of_doubts()
        self._make([name for name in names if not homes[name]], homes)
        if self.dropped and not drop_rest:
            raise ValueError(
                f"the adapter cannot hold what changed in {some_of(sorted(self.dropped))} The model that it is for has "
                "no tensor of such a name. drop_rest=True writes it without them."
            )
        self._make([name for name in names if homes[name]], homes)
        if not self.ranks:  # PEFT takes no adapter without factors, so that one layer has a product of zeros
            self._put_zeros()

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the adapter's weights."""
        base, kept = self.plan.vectors, {}
        for key in self.spool.headers.keys() - self.whole.keys():
            kept[key] = key
        for module in self.modules:
            kept |= {f"{ROOT}{own}": name for own, name in self.layout.mates(module).items()}
        for name, home in self.whole.items():
            if home.way == WHOLE:
                kept[self.layout.key(home, self.ranks)] = name
        headers = {key: self.spool.headers.get(name) or base.headers[name] for key, name in sorted(kept.items())}
        with SafetensorsWriter(path, headers, metadata) as writer:
            for key in headers:
                name = kept[key]
                tensor = self.spool.read(name) if name in self.spool.headers else base.base(name)
                writer.write(key, tensor.reshape(-1))

    def _put_zeros(self) -> None:
        headers, homes = self.plan.vectors.headers, self.layout.homes
        adaptable = [name for name, home in homes.items() if home.way == FACTORS]
        merged = [name for name in adaptable if name in self.plan.jobs]
        name = min(merged or adaptable, key=lambda name: (not headers[name].numel, headers[name].numel))
        self._put_factors(name, homes[name], torch.zeros(headers[name].shape))

    def _homes(self, name: str) -> dict[str, Home]:
        known = self.layout.homes
        return {each: known[each] for each in self.plan.vectors.names_of(name) if each in known}

    def _make(self, names: list[str], homes: Mapping[str, Mapping[str, Home]]) -> None:
        by_name = groupby(self.plan.made(names), key=lambda piece: piece.name)
        for name, pieces in steps_of(by_name, "Factorising", len(names)):
            self._add(name, list(pieces), homes[name])

    def _add(self, name: str, pieces: list[Piece], homes: Mapping[str, Home]) -> None:
        if all(piece.merged is None for piece in pieces):
            return
        job, header = self.plan.jobs[name], self.plan.vectors.headers[name]
        base = torch.cat([piece.base for piece in pieces])
        values = torch.cat([piece.added(job) for piece in pieces]).cpu()  # which also refuses what overflows
        change = torch.cat([_change(piece, job.scale) for piece in pieces]).reshape(header.shape)
        is_held_whole = any(home.way != FACTORS for home in homes.values())
        norm = _norm(change)
        if not norm or (is_held_whole and torch.equal(values, base.cpu())):
            return
        self.square += norm**2
        if not homes:
            self.dropped[name] = norm
            self.lost += norm**2
        for each, home in homes.items():
            if home.way == FACTORS:
                self.lost += self._put_factors(each, home, change) ** 2
            else:
                self.whole[each] = home
                self.spool.put(each, values.reshape(header.shape))
                if home.way == MODULE:
                    self.modules.add(home.path)

    def _put_factors(self, name: str, home: Home, change: Tensor) -> float:
        """Make the factors of a layer, and return the norm of what they lack."""
        matrix = factor_matrix(home, change)
        b, a = low_rank_factors(matrix, self.rank)
        if not a.shape[0]:
            b, a = matrix.new_zeros(len(matrix), 1), matrix.new_zeros(1, matrix.shape[1])
        limit = torch.finfo(self.dtype).max
        if (largest := max(float(each.abs().max()) for each in (b, a) if each.numel())) > limit:
            told = f"{largest:g} is beyond {limit:g}, the largest of {self.dtype}. Give another dtype for factors."
            raise ValueError(f"the factors of {shown(name)} would overflow: {told}")
        b, a = b.to(self.dtype), a.to(self.dtype)
        error, norm = factored_error(matrix, b, a), _norm(matrix)
        for key, tensor in factor_tensors(home, b, a, tuple(change.shape)).items():
            self.spool.put(key, tensor)
        self.ranks[home.path] = len(a)
        self.layers.append(AdaptedLayer(name, len(a), norm, error / norm if norm else 0.0))
        return error


def _change(piece: Piece, scale: float) -> Tensor:
    """Return what a piece of a merge adds to the base."""
    return torch.zeros(len(piece.base)) if piece.merged is None else piece.merged * scale


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def relative(lost: float, square: float) -> float:
    """Return the root of a squared norm that is lost, relative to another's; nothing is lost of nothing."""
    return math.sqrt(lost / square) if square else 0.0

"""What an adapter adds to one tensor of its base, computed from the adapter's tensors when it is asked for.

Each change is a small object with a ``shape`` and a method ``difference(adapter, start)``, where ``start`` returns the
weights that it is added to. All is computed in float64, which neither autocast nor a lowered precision of float32
products rounds further.

References:
    LoRA https://arxiv.org/abs/2106.09685, rsLoRA https://arxiv.org/abs/2312.03732,
    AdaLoRA https://arxiv.org/abs/2303.10512, DoRA https://arxiv.org/abs/2402.09353.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import Checkpoint


class Change(Protocol):
    """A change of one tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor that is changed."""

    def difference(self, adapter: Checkpoint, start: Callable[[], Tensor], /) -> Tensor:
        """Return what is added to the tensor that ``start`` returns, both in float64."""


@dataclass(frozen=True)
class Product:
    """``scaling * B A`` of two factors, whose singular values AdaLoRA keeps beside them.

    Attributes:
        a: The tensor A, ``(rank, in, ...)``.
        b: The tensor B, ``(out, rank, ...)``.
        scaling: What the product is multiplied by.
        shape: Of the weight.
        transposed: Whether the weight is ``(in, out)``.
        values: The tensor of AdaLoRA's singular values, ``(rank, 1)``, or none.
        blocks: How many blocks of a diagonal BD-LoRA stores A and B as.
    """

    a: str
    b: str
    scaling: float
    shape: tuple[int, ...]
    transposed: bool = False
    values: str | None = None
    blocks: tuple[int, int] = (1, 1)

    def difference(self, adapter: Checkpoint, start: Callable[[], Tensor]) -> Tensor:
        """Return the product."""
        factors = (adapter.read(name).double().flatten(1) for name in (self.a, self.b))
        a, b = (_diagonal(factor, count) for factor, count in zip(factors, self.blocks, strict=True))
        if self.values is not None:
            a = a * adapter.read(self.values).double()
        product = (b @ a).mul_(self.scaling)
        return product.T if self.transposed else product.reshape(self.shape)


@dataclass(frozen=True)
class Experts:
    """``scaling * B_e A_e`` for each expert of a parameter that holds the weights of several.

    Attributes:
        a: The tensor A, ``(experts * rank, in)``.
        b: The tensor B, ``(out, rank * experts)``, in which the expert counts fastest.
        scaling: What the products are multiplied by.
        shape: Of the parameter, ``(experts, ...)``.
        transposed: Whether the weight of an expert is ``(in, out)``.
    """

    a: str
    b: str
    scaling: float
    shape: tuple[int, ...]
    transposed: bool

    def difference(self, adapter: Checkpoint, start: Callable[[], Tensor]) -> Tensor:
        """Return the products, stacked."""
        a, b = adapter.read(self.a).double(), adapter.read(self.b).double()
        experts = self.shape[0]
        products = b.reshape(len(b), -1, experts).permute(2, 0, 1) @ a.reshape(experts, -1, a.shape[1])
        return (products.mT if self.transposed else products).mul(self.scaling)


@dataclass(frozen=True)
class Scaled:
    """A tensor of the adapter, scaled: the bias of a factor B.

    Attributes:
        name: The tensor.
        scaling: What it is multiplied by.
        shape: Of both.
    """

    name: str
    scaling: float
    shape: tuple[int, ...]

    def difference(self, adapter: Checkpoint, start: Callable[[], Tensor]) -> Tensor:
        """Return the tensor, scaled."""
        return adapter.read(self.name).double().mul(self.scaling)


@dataclass(frozen=True)
class Magnitudes:
    """DoRA: the weights with a product added, brought to a length for each output that was learned.

    Attributes:
        product: What is added before.
        magnitudes: The tensor with the lengths.
    """

    product: Product
    magnitudes: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.product.shape

    def difference(self, adapter: Checkpoint, start: Callable[[], Tensor]) -> Tensor:
        """Return what the weights become, minus them."""
        weights = start()
        added = weights + self.product.difference(adapter, start)
        outputs = 1 if self.product.transposed else 0
        others = [dimension for dimension in range(added.dim()) if dimension != outputs]
        lengths = torch.linalg.vector_norm(added, dim=others, keepdim=True)
        wanted = adapter.read(self.magnitudes).double().reshape(lengths.shape)
        return added.mul_(wanted / lengths).sub_(weights)


@dataclass(frozen=True)
class Rows:
    """Rows of an embedding that were trained, which take the place of the base's.

    Attributes:
        name: The tensor with the rows.
        indices: Which they are.
        shape: Of the embedding.
    """

    name: str
    indices: tuple[int, ...]
    shape: tuple[int, ...]

    def difference(self, adapter: Checkpoint, start: Callable[[], Tensor]) -> Tensor:
        """Return the rows minus those of the base, and zeros."""
        weights, indices = start(), torch.tensor(self.indices, dtype=torch.int64)
        made = torch.zeros(self.shape, dtype=torch.float64)
        made[indices] = adapter.read(self.name).double() - weights[indices]
        return made


def _diagonal(factor: Tensor, count: int) -> Tensor:
    """Return a matrix whose blocks, stored below each other, stand on a diagonal."""
    if count == 1:
        return factor
    made: Tensor = torch.block_diag(*factor.chunk(count))  # type: ignore[no-untyped-call]
    return made

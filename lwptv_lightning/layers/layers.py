"""Layers of a model: named groups of tensors, listed in the order in which the model uses them.

A saliency score and a pruning mask have one entry per layer. Three granularities say what a layer is:

- ``"block"``: the innermost repeated container around a tensor, such as ``blocks.3`` of a transformer or
  ``layers.2.blocks.5`` of a hierarchical one. What stands outside such containers is grouped as in ``"module"``.
- ``"module"``: all tensors that one module owns directly, such as ``blocks.3.attn.qkv``. A tensor that the root
  owns, such as ``cls_token``, is a layer of its own.
- ``"tensor"``: every tensor by itself.

Tensors are floating parameters and floating persistent buffers, under their state-dict names.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

from lwptv_lightning.registry import (
    GRANULARITIES,
    nearest,
    printable_name,
    require_kind,
    require_known,
    require_texts,
    shown,
)


@dataclass(frozen=True)
class Layer:
    """A named group of tensors that is kept or pruned as one.

    Args:
        name: Path of the block or module, or name of the tensor, that the layer stands for.
        tensors: State-dict names of the layer's tensors.
    """

    name: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Layers(Sequence[Layer]):
    """An immutable sequence of layers that share no tensor.

    Args:
        layers: The layers, in execution order.
        granularity: What one layer is: ``"block"``, ``"module"`` or ``"tensor"``.

    Raises:
        UnknownNameError: ``granularity`` is none of the three.
        ValueError: Two layers have the same name, or a tensor appears twice.

    Example:
        >>> layers = Layers((Layer("fc1", ("fc1.weight", "fc1.bias")), Layer("fc2", ("fc2.weight",))), "module")
        >>> layers.names, layers.index_of("fc2.weight")
        (('fc1', 'fc2'), 1)
        >>> layers.restrict(["fc1.bias"]).tensors
        ('fc1.bias',)
    """

    layers: tuple[Layer, ...]
    granularity: str

    def __post_init__(self) -> None:
        require_known("granularity", self.granularity, GRANULARITIES)
        require_kind("layers", self.layers, tuple, "a tuple of Layer")
        for layer in self.layers:
            require_kind("an entry of layers", layer, Layer, "a Layer")
            require_kind("a layer's name", layer.name, str, "a text")
            require_texts(f"the tensors of layer {layer.name!r}", layer.tensors, "names")
        for kind, names in (("layer name", self.names), ("tensor", self.tensors)):
            repeated = [name for name, count in Counter(names).items() if count > 1]
            if repeated:
                listed = ", ".join(map(printable_name, repeated))
                raise ValueError(f"every {kind} must be unique among the layers; repeated: {listed}.")

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> Layers: ...
    def __getitem__(self, index: int | slice) -> Layer | Layers:
        if isinstance(index, slice):
            return Layers(self.layers[index], self.granularity)
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the layers, in order."""
        return tuple(layer.name for layer in self.layers)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all tensors, layer by layer."""
        return tuple(tensor for layer in self.layers for tensor in layer.tensors)

    def index_of(self, tensor_name: str) -> int:
        """Return the position, from 0, of the layer that holds a tensor of a state-dict name.

        Raises:
            KeyError: No layer holds a tensor of that name; the message gives the nearest one.
        """
        try:
            return self._positions[tensor_name]
        except (KeyError, TypeError):
            hint = nearest(tensor_name, self._positions)
            raise KeyError(f"none of the {len(self)} layers holds the tensor {shown(tensor_name)}.{hint}") from None

    def restrict(self, tensor_names: Iterable[str]) -> Layers:
        """Return the layers with the given tensors only, in the same order; one of which nothing is left vanishes.

        Raises:
            KeyError: No layer holds one of the tensors.
        """
        kept = set(require_texts("tensor_names", tensor_names, "names of tensors"))
        for name in kept:
            self.index_of(name)
        reduced = (Layer(layer.name, tuple(t for t in layer.tensors if t in kept)) for layer in self.layers)
        return Layers(tuple(layer for layer in reduced if layer.tensors), self.granularity)

    def beside(self, others: Iterable[str], order: Iterable[str]) -> dict[str, int]:
        """Return the position of the layer that each of some other tensors goes with.

        It is the first layer with a tensor of the same module; where there is none, the layer of the tensor before it.

        Args:
            others: Names of tensors that no layer holds, such as running statistics.
            order: All names, in execution order.

        Example:
            >>> layers = Layers((Layer("conv", ("conv.weight",)), Layer("fc", ("fc.weight",))), "module")
            >>> layers.beside(["bn.mean", "fc.scale"], ["conv.weight", "bn.mean", "fc.weight", "fc.scale"])
            {'bn.mean': 0, 'fc.scale': 1}
        """
        modules: dict[str, int] = {}
        for name, position in self._positions.items():
            modules.setdefault(name.rpartition(".")[0], position)
        wanted, found, before = set(others), {}, 0
        for name in order:
            if name in wanted:
                found[name] = modules.get(name.rpartition(".")[0], before)
            before = self._positions.get(name, before)
        return found

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {tensor: position for position, layer in enumerate(self.layers) for tensor in layer.tensors}


def _group(ties: Iterable[Sequence[str]], granularity: str, blocks: Collection[str]) -> Layers:
    """Group the names of tensors into layers; the first of several tied names decides."""
    grouped: defaultdict[str, list[str]] = defaultdict(list)
    for names in ties:
        grouped[_layer_name(names[0], granularity, blocks)].extend(names)
    return Layers(tuple(Layer(name, tuple(tensors)) for name, tensors in grouped.items()), granularity)


def _layer_name(tensor: str, granularity: str, blocks: Collection[str]) -> str:
    if granularity == "tensor":
        return tensor
    parts = tensor.split(".")
    around = [".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]  # modules, innermost first
    return next((path for path in around if path in blocks), around[0] if around else tensor)

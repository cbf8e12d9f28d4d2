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

import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import overload

from torch import fx, nn

from lwptv_lightning.registry import GRANULARITIES, nearest, require_known
from lwptv_lightning.tracing import TracingError, floating_tensors, trace

__all__ = ["Layer", "Layers", "TracingError", "layers_from_names", "trace", "trace_layers"]


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
        for kind, names in (("layer name", self.names), ("tensor", self.tensors)):
            repeated = [name for name, count in Counter(names).items() if count > 1]
            if repeated:
                raise ValueError(f"every {kind} must be unique among the layers; repeated: {', '.join(repeated)}.")

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
        """Return the position of the layer that holds a tensor.

        Args:
            tensor_name: State-dict name of the tensor.

        Returns:
            The index of its layer, from 0.

        Raises:
            KeyError: No layer holds a tensor of that name; the message gives the nearest one.

        Example:
            >>> layers_from_names(["fc1.weight", "fc2.weight"]).index_of("fc2.weight")
            1
        """
        try:
            return self._positions[tensor_name]
        except KeyError:
            hint = nearest(tensor_name, self._positions)
            raise KeyError(f"none of the {len(self)} layers holds the tensor {tensor_name!r}.{hint}") from None

    def restrict(self, tensor_names: Iterable[str]) -> Layers:
        """Return the layers with the given tensors only, in the same order.

        Args:
            tensor_names: State-dict names of the tensors to keep, in any order.

        Returns:
            Layers of the same granularity; a layer of which nothing is left vanishes.

        Raises:
            KeyError: No layer holds one of the tensors.

        Example:
            >>> layers = layers_from_names(["norm.weight", "norm.bias", "head.weight"])
            >>> layers.restrict(["norm.bias"])
            Layers(layers=(Layer(name='norm', tensors=('norm.bias',)),), granularity='module')
        """
        kept = set(tensor_names)
        for name in kept:
            self.index_of(name)
        reduced = (Layer(layer.name, tuple(t for t in layer.tensors if t in kept)) for layer in self.layers)
        return Layers(tuple(layer for layer in reduced if layer.tensors), self.granularity)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {tensor: position for position, layer in enumerate(self.layers) for tensor in layer.tensors}


def trace_layers(model: nn.Module, granularity: str = "module") -> Layers:
    """List the layers of a model in execution order.

    A layer stands where the traced graph first uses one of its tensors. Tensors that the graph never uses come last,
    in state-dict order. A module that the tracer does not enter counts as using its tensors in state-dict order.
    A tensor with several names (tied weights) belongs with all its names to the layer that uses it first.

    The numbered children of a module (an `nn.ModuleList` or `nn.Sequential`, as a rule) are blocks if they have
    parameters in children of their own and two or more of them share a class. The ``Linear, GELU, Linear`` of an MLP
    are therefore no blocks.

    Args:
        model: Any module, not yet sharded or compiled. It is not changed.
        granularity: ``"block"``, ``"module"`` or ``"tensor"``.

    Returns:
        Layers that hold each floating parameter and floating persistent buffer exactly once.

    Raises:
        UnknownNameError: ``granularity`` is none of the three.

    Warns:
        UserWarning: The model cannot be traced; its layers are listed in ``named_modules()`` order instead.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
        >>> trace_layers(model).names
        ('0', '2')
        >>> trace_layers(model, "tensor").names
        ('0.weight', '0.bias', '2.weight', '2.bias')
    """
    require_known("granularity", granularity, GRANULARITIES)
    try:
        used = list(_used_names(trace(model)))
    except TracingError as error:
        consequence = "Its layers are listed in named_modules() order, which may differ from the execution order."
        warnings.warn(f"{error} {consequence}", UserWarning, stacklevel=2)
        used = []
    tensors = floating_tensors(model)
    # A dictionary keeps the position at which a name, and below the first name of a tensor, was first put in.
    ordered = dict.fromkeys((*(name for name in used if name in tensors), *tensors))
    ties: defaultdict[int, list[str]] = defaultdict(list)
    for name in ordered:
        ties[id(tensors[name])].append(name)
    return _group(ties.values(), granularity, _blocks_of(model) if granularity == "block" else set())


def layers_from_names(names: Iterable[str], granularity: str = "module") -> Layers:
    """Group tensors into layers by their names alone, without a model.

    The order of the names is kept, and tied weights cannot be seen. Blocks are guessed: modules ``prefix.<int>`` with
    nested names such as ``attn.qkv.weight`` are blocks if two or more under that prefix have one in common.
    `trace_layers` asks for a common class instead: numbered siblings of different classes whose tensors have like
    names, or of one class whose tensors have none in common, are seen differently.

    Args:
        names: State-dict names of the tensors, in the order wanted.
        granularity: ``"block"``, ``"module"`` or ``"tensor"``.

    Returns:
        Layers that hold each name exactly once.

    Raises:
        UnknownNameError: ``granularity`` is none of the three.
        ValueError: A name is given twice.

    Example:
        >>> names = ["cls_token", "blocks.0.norm.weight", "blocks.0.fc.weight", "blocks.1.norm.weight"]
        >>> layers_from_names(names).names
        ('cls_token', 'blocks.0.norm', 'blocks.0.fc', 'blocks.1.norm')
        >>> layers_from_names(names, "block").names
        ('cls_token', 'blocks.0', 'blocks.1')
    """
    require_known("granularity", granularity, GRANULARITIES)
    names = list(names)
    blocks = _blocks_among(names) if granularity == "block" else set()
    return _group(([name] for name in names), granularity, blocks)


def _used_names(traced: fx.GraphModule) -> Iterator[str]:
    """Yield the names of tensors in the order in which the graph uses them; some more than once."""
    for node in traced.graph.nodes:
        # An attribute is fetched when the code first looks at it, and used when a computation takes it.
        yield from (str(source.target) for source in node.all_input_nodes if source.op == "get_attr")
        if node.op == "call_module":
            yield from traced.get_submodule(str(node.target)).state_dict(prefix=f"{node.target}.")


def _blocks_of(model: nn.Module) -> set[str]:
    """Return the paths of the repeated modules, as `trace_layers` defines them."""
    blocks: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        # Not named_children(), which would list a block that is used several times only once.
        numbered = {name: child for name, child in module._modules.items() if name.isdecimal() and _is_composite(child)}
        if max(Counter(map(type, numbered.values())).values(), default=0) > 1:
            blocks.update(f"{path}.{name}".lstrip(".") for name in numbered)  # the root's path is empty
    return blocks


def _is_composite(module: nn.Module | None) -> bool:
    """Whether children of the module have parameters."""
    return module is not None and any(True for child in module.children() for _ in child.parameters())


def _blocks_among(names: Iterable[str]) -> set[str]:
    """Return the paths of the repeated modules, as `layers_from_names` guesses them."""
    nested: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        parts = name.split(".")
        for depth, part in enumerate(parts[:-2]):  # a tensor in a child of the block has two more parts
            if part.isdecimal():
                nested[".".join(parts[:depth])][part].append(".".join(parts[depth + 1 :]))
    return {
        f"{path}.{number}".lstrip(".")
        for path, numbered in nested.items()
        if max(Counter(chain.from_iterable(numbered.values())).values()) > 1
        for number in numbered
    }


def _group(ties: Iterable[Sequence[str]], granularity: str, blocks: Collection[str]) -> Layers:
    """Group the names of tensors into layers; the first of several tied names decides."""
    grouped: defaultdict[str, list[str]] = defaultdict(list)
    for names in ties:
        grouped[_layer_name(names[0], granularity, blocks)].extend(names)
    return Layers(tuple(Layer(name, tuple(tensors)) for name, tensors in grouped.items()), granularity)


def _layer_name(tensor: str, granularity: str, blocks: Collection[str]) -> str:
    if granularity == "tensor":
        return tensor
    owners = list(_owners(tensor))
    return next((path for path in owners if path in blocks), owners[0] if owners else tensor)


def _owners(tensor: str) -> Iterator[str]:
    """Yield the paths of the modules around a tensor, innermost first, without the root."""
    path = tensor
    while path := path.rpartition(".")[0]:
        yield path

"""Layers of a model, in the order in which its traced graph uses them."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator

from torch import fx, nn

from lwptv_lightning.layers.layers import Layers, _group
from lwptv_lightning.layers.tracing import TracingError, floating_tensors, replicate, trace
from lwptv_lightning.registry import GRANULARITIES, require_known


def trace_layers(model: nn.Module, granularity: str = "module") -> Layers:
    """List the layers of a model in execution order.

    A layer stands where the traced graph first uses one of its tensors. Tensors that the graph never uses come last,
    in state-dict order. A module that the tracer does not enter counts as using its tensors in state-dict order.
    A tensor with several names (tied weights) belongs with all its names to the layer that uses it first.

    The numbered children of a module (an `nn.ModuleList` or `nn.Sequential`, as a rule) are blocks if they have
    parameters in children of their own and two or more of them share a class. The ``Linear, GELU, Linear`` of an MLP
    are therefore no blocks.

    Args:
        model: Any module, not yet sharded. It is not changed.
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
    return _group(ties.values(), granularity, _blocks_of(replicate(model)) if granularity == "block" else set())


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

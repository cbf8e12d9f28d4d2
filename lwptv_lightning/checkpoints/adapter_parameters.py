"""Which bare parameter of a module each pair of factors belongs to, where PEFT adapts several of them.

Its ``target_parameters`` wraps a module once for each parameter, in the order of their definition, which neither the
names of the factors nor those in a file tell. So shapes tell, or the module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class AdaptedParameter:
    """A parameter, and how its factors become its shape.

    Attributes:
        name: The parameter, within its module.
        depth: Of the wrapper whose factors are its own.
        transposed: Whether each expert's weight is ``(in, out)``.
    """

    name: str
    depth: int
    transposed: bool


def parameters_of(
    factors: Sequence[tuple[Shape, Shape]], parameters: Mapping[str, Shape], module: nn.Module | None
) -> list[AdaptedParameter] | None:
    """Return the parameter that each pair of factors belongs to, or None where that cannot be told.

    Args:
        factors: Shapes of A and B, by the depth of their wrapper; the outermost one wrapped the last parameter.
        parameters: Name to shape of the parameters that were adapted.
        module: Their module, where it is at hand.

    Example:
        >>> found = parameters_of([((8, 5), (7, 8)), ((8, 7), (6, 8))], {"up": (4, 6, 7), "down": (4, 7, 5)}, None)
        >>> [(each.name, each.depth, each.transposed) for each in found]
        [('down', 0, False), ('up', 1, False)]
    """
    if module is not None:
        ordered = [name for name, _ in module.named_parameters(recurse=False) if name in parameters]
        orders = [tuple(reversed(ordered))]
    else:
        orders = list(permutations(parameters)) if len(parameters) <= 4 else []
    ways = []
    for order in orders:
        fits = [_ways(*pair, parameters[name]) for pair, name in zip(factors, order, strict=False)]
        if len(order) == len(factors) and all(fits):
            ways.append((order, fits))
    if len(ways) != 1:
        return None
    (order, fits), *_ = ways
    # All experts' weights of a module stand alike.
    told = set.intersection(*fits) if module is None else {bool(getattr(module, "is_transposed", False))}
    found = []
    for depth, (name, fit) in enumerate(zip(order, fits, strict=True)):
        if len(parameters[name]) == 2:
            found.append(AdaptedParameter(name, depth, False))
        elif len(fit & told) == 1:
            found.append(AdaptedParameter(name, depth, *(fit & told)))
        else:
            return None
    return found


def _ways(a: Shape, b: Shape, shape: Shape) -> set[bool]:
    """Return whether the products of two factors fit a parameter as ``(out, in)``, False, or as ``(in, out)``, True."""
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        return set()
    if len(shape) == 2:
        # A matrix is never turned, and so fits whichever way the others of its module stand.
        return {False, True} if shape == (b[0], a[1]) else set()
    if len(shape) != 3 or not shape[0] or a[0] % shape[0]:
        return set()
    return {is_turned for is_turned in (False, True) if shape[1:] == ((a[1], b[0]) if is_turned else (b[0], a[1]))}

"""Which submodule of a module weights belong to: the only one that has all of their tensors, or the one named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from lwptv_lightning.checkpoints import some_of
from lwptv_lightning.functional import plain_module, plain_name, plain_state
from lwptv_lightning.merging.install import _require_fit
from lwptv_lightning.registry import require_known


class _Candidate(NamedTuple):
    """A submodule by its path, the tensors that it lacks, and what tells whether another one holds the same."""

    path: str
    lacking: list[str]
    tensors: tuple[int, ...]

    def __str__(self) -> str:
        return repr(self.path) + (f" (all but {some_of(self.lacking, 3)[:-1]})" if self.lacking else "")


def named_submodule(root: nn.Module, path: str, option: str = "backbone") -> nn.Module:
    """Return a submodule by its path, in which names that `torch.compile` put there may be left out.

    Raises:
        UnknownNameError: There is none.
    """
    submodules: dict[str, nn.Module] = {
        plain_name(own): module for own, module in root.named_modules(remove_duplicate=False)
    }
    require_known(option, plain_name(path), submodules)
    return submodules[plain_name(path)]


def find_backbone(
    root: nn.Module, shapes: Mapping[str, tuple[int, ...]], path: str | None = None, *, otherwise: str | None = None
) -> str:
    """Return the path of the submodule that has tensors of some names and shapes.

    Args:
        root: The module to look in, itself included.
        shapes: Name to shape.
        path: The submodule's path, to be checked; by default it is searched for.
        otherwise: What to return where no submodule has them.

    Raises:
        UnknownNameError: There is no submodule of that path.
        ValueError: It lacks a tensor; or, of all submodules, none has them or several do. One that has nearly all of
            them counts: it may be the one that is meant.

    Example:
        >>> model = nn.ModuleDict({"encoder": nn.Linear(2, 3), "head": nn.Linear(3, 2)})
        >>> find_backbone(model, {"weight": (3, 2), "bias": (3,)})
        'encoder'
    """
    if path is not None:
        _require_fit(named_submodule(root, path), shapes)
        return path
    found = _candidates(root, shapes)
    fitting = [each for each in found if not each.lacking]
    near = [each for each in found if each.lacking and not any(_are_nested(each.path, fit.path) for fit in fitting)]
    label = type(plain_module(root)).__name__
    if not fitting and otherwise is not None:
        return otherwise
    if not fitting:
        nearest = f" The nearest is {near[0]}." if near else ""
        raise ValueError(
            f"no submodule of {label} has all merged tensors, such as "
            f"{some_of(shapes, 3)}{nearest} Name it with backbone='...'."
        )
    if len(fitting) + len(near) > 1:
        raise ValueError(
            f"several submodules of {label} have the merged tensors: {', '.join(map(str, fitting + near))}. Say which "
            "one is meant: backbone='...'."
        )
    return fitting[0].path


def _candidates(root: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[_Candidate]:
    """Return the submodules with all tensors or nearly all; of those that hold the same tensors only the first."""
    found: dict[tuple[int, ...], _Candidate] = {}
    for path, module in root.named_modules():
        own = plain_state(module, keep_vars=True)
        matching = [name for name, shape in shapes.items() if name in own and tuple(own[name].shape) == tuple(shape)]
        lacking = [name for name in shapes if name not in matching]
        is_short_of_one = len(lacking) == 1 and lacking[0] not in own and bool(matching)
        if 2 * len(matching) > len(shapes) or is_short_of_one:
            tensors = tuple(id(own[name]) for name in matching)
            found.setdefault(tensors, _Candidate(plain_name(path), lacking, tensors))
    return list(found.values())


def _are_nested(path: str, other: str) -> bool:
    return any(not outer or f"{inner}.".startswith(f"{outer}.") for outer, inner in ((path, other), (other, path)))

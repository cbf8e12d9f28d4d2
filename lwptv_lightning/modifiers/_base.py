"""What a modifier of any merging rule is: it acts before a rule, around it, or on what it made."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from lwptv_lightning.engine import Once
from lwptv_lightning.functional import Triplets
from lwptv_lightning.registry import Registry, check_parameters, from_values, shown

ModifierType = TypeVar("ModifierType", bound="type[Modifier]")
Kind = TypeVar("Kind", bound="Modifier")


class Modifier(ABC):
    """A frozen dataclass of plain hyper-parameters, under a registered name.

    Attributes:
        name: The registered name.
        paper: Where it is from.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    def __post_init__(self) -> None:
        check_parameters(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the registered name and the hyper-parameters, ready for JSON."""
        return {"name": self.name, **dataclasses.asdict(self)}  # type: ignore[call-overload]


class Reweighting(Modifier):
    """Acts on each task vector, before masks and before a rule."""

    @abstractmethod
    def treats(self, name: str, shape: Sequence[int]) -> bool:
        """Tell whether a tensor ``(*shape)`` is reweighted; others stay as they are."""

    @abstractmethod
    def reweighted(self, delta: Tensor, base: Tensor, once: Once) -> Tensor:
        """Return one task vector of one tensor, reweighted.

        Args:
            delta: ``(*shape)``, not to be written to.
            base: The base's tensor, ``(*shape)``, in its own dtype.
            once: As in `lwptv_lightning.rules.MergeContext`.
        """


class Calibration(Modifier):
    """Acts on what a rule made of a matrix, times the recipe's scale: it weighs that matrix's left singular vectors.

    With ``M = U diag(s) V`` the result is ``scale U diag(gains) U^T M``. So it acts on each task's part of a rule that
    is a sum over tasks, too. Directions that M has not are in no result.

    Attributes:
        scale: What the calibrated matrix is multiplied with afterwards.
        tells_directions_apart: Whether it needs singular values that differ: where all are equal, each singular vector
            is rounding noise, and so is what it makes of it.
    """

    scale: float = 1.0
    tells_directions_apart: ClassVar[bool] = False

    @abstractmethod
    def treats(self, name: str, shape: Sequence[int]) -> bool:
        """Tell whether a tensor ``(*shape)`` is calibrated, as the matrix ``(shape[0], rest)``."""

    def row_blocks(self, name: str, shape: Sequence[int]) -> int:
        """Return into how many blocks of rows a matrix is divided, each of which is calibrated by itself."""
        return 1

    @abstractmethod
    def gains(self, merged: Triplets, tau: Tensor) -> Tensor:
        """Return what each left singular vector of a merged task vector is multiplied with; finite.

        Args:
            merged: All singular triplets of the merged task vector ``(m, n)``, already scaled, in float64; those
                without weight are zero, vectors too. Not to be written to.
            tau: The task vectors as the rule saw them, ``(T, m, n)``. Not to be written to.

        Returns:
            ``(r,)`` in float64, for r triplets.
        """


class Subspace(Modifier):
    """Says in the common space of which matrices a rule works; `lwptv_lightning.rules.InSubspace` takes it there.

    Attributes:
        include: Globs of tensor names; other tensors stay as they are in the base.
    """

    include: tuple[str, ...]


REWEIGHTINGS: Registry[type[Reweighting]] = Registry("reweighting")
CALIBRATIONS: Registry[type[Calibration]] = Registry("calibration")
SUBSPACES: Registry[type[Subspace]] = Registry("subspace")
_REGISTRIES: dict[type[Modifier], Registry[Any]] = {
    Reweighting: REWEIGHTINGS,
    Calibration: CALIBRATIONS,
    Subspace: SUBSPACES,
}


def modifier(name: str, *, paper: str) -> Callable[[ModifierType], ModifierType]:
    """Return a class decorator that registers a modifier under a name."""

    def register(cls: ModifierType) -> ModifierType:
        cls.name, cls.paper = name, paper
        next(registry for kind, registry in _REGISTRIES.items() if issubclass(cls, kind)).register(name, cls)
        return cls

    return register


def make_modifier(field: str, value: Any, kind: type[Kind], registry: Registry[type[Kind]]) -> Kind:
    """Return a modifier from a name, from a mapping with a name and hyper-parameters, or as it is.

    Args:
        field: What the value is for, for messages.
        value: The name, mapping or modifier.
        kind: `Reweighting`, `Calibration` or `Subspace`.
        registry: The one of that kind.

    Raises:
        UnknownNameError: No such modifier or hyper-parameter.
        TypeError: ``value`` is none of these.
    """
    if isinstance(value, kind):
        return value
    arguments = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    if not isinstance(arguments.get("name"), str):
        known = ", ".join(map(repr, sorted(registry)))
        raise TypeError(f"{field} must be one of {known}, or a mapping with such a 'name', not {shown(value)}.")
    cls = registry[arguments.pop("name")]
    return from_values(cls, f"hyper-parameter of {cls.name}", arguments)

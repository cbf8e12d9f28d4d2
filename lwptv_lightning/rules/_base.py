"""What a merging rule is: two pure functions over a stack of task vectors, and a name in the registry."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeAlias

import torch
from torch import Tensor
from typing_extensions import TypeVar

from lwptv_lightning.engine import Once, Stream, anew, of_each
from lwptv_lightning.functional import Triplets, decompose, sum_tasks
from lwptv_lightning.layers import is_matrix as is_matrix  # rules import them from here
from lwptv_lightning.layers import is_pointwise as is_pointwise
from lwptv_lightning.registry import Registry, check_parameters, from_values, shown

RULES: Registry[type[MergeRule[Any]]] = Registry("merging rule")

Unit: TypeAlias = Literal["element", "task", "tensor"]

RuleType = TypeVar("RuleType", bound="type[MergeRule[Any]]")
Survey = TypeVar("Survey", default=None)
"""What a rule needs to know of the whole model; ``None`` where that is nothing."""


@dataclass(frozen=True)
class MergeContext:
    """What a rule may know of the stack it combines besides its values.

    Attributes:
        name: The tensor's name.
        tasks: The T task names, in the order of the stack.
        survey: What the rule's own `MergeRule.survey` returned.
        statistics: What was collected on data for this tensor, one for each task, ``(T, ...)``; ``None`` where
            nothing was. Where the stack is a block of the tensor, this is the same block of the statistics.
        start: The position of the stack's first element in the flattened tensor; above 0 for a block of it.
        task: The task whose own model is wanted, for rules that make one for each; ``None`` is the model of all.
        once: ``once(function, tensor)`` is ``function(tensor)`` of a pure function, perhaps remembered from another
            pass, rule or candidate that had the same tensor; not to be written to.
    """

    name: str
    tasks: tuple[str, ...]
    survey: Any = None
    statistics: Tensor | None = None
    start: int = 0
    task: str | None = None
    once: Once = anew

    def decompose(self, matrices: Tensor) -> Triplets:
        """Return all singular triplets of a matrix ``(m, n)``, or of each of a stack ``(T, m, n)``, in float64.

        Those of a matrix are computed once for all rules, modifiers and candidates that ask; see
        `MergeRule.decomposes_tasks`.
        """
        if matrices.dim() == 2:
            return self.once(decompose, matrices)
        return Triplets(*map(torch.stack, zip(*of_each(self.once, decompose, matrices), strict=True)))


class MergeRule(ABC, Generic[Survey]):
    """Combines the T task vectors of one tensor into one.

    A rule never sees the base: ``merge`` adds ``scale * combine(...)`` to it, once. Pruned rows are zeros. A rule is
    a frozen dataclass of plain hyper-parameters, decorated with `merge_rule`, and implements either `combine`, or
    `parts` where the result is a sum over the tasks. Several threads call these at a time. Where they use nothing but
    the functions of `lwptv_lightning.functional` that are noted, large models are merged by compiled kernels.

    Attributes:
        name: The registered name.
        paper: Where the rule is from.
        published_scale: The scaling coefficient that its source uses.
        needs: The kind of data statistics without which it cannot merge, such as ``"fisher"``; empty for none.
        per_task: Whether it can make a model for each task besides the merged one.
        decomposes_tasks: Whether it decomposes each task's matrix, where it treats a tensor as matrices; on an
            accelerator those of several tensors are decomposed at once then.
        no_parts: Why it has no `parts`, where that is not so for want of them.
        tensors: Which tensors it treats how, in a few words.
        treats: How it treats those that it does not treat like all rules: ``"as matrices"``.
        is_isotropic: Whether it makes all singular values of a matrix equal, so that singular vectors are noise.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    published_scale: ClassVar[float]
    needs: ClassVar[str] = ""
    per_task: ClassVar[bool] = False
    decomposes_tasks: ClassVar[bool] = False
    no_parts: ClassVar[str] = ""
    tensors: ClassVar[str] = "all alike"
    treats: ClassVar[str] = "as matrices"
    is_isotropic: ClassVar[bool] = False

    @property
    def unit(self) -> Unit:
        """The least that `combine` must see at once, which decides how much memory a merge takes.

        ``"element"``: the result at an element depends on the task vectors there and on the context alone, so that a
        tensor may come flattened and in blocks, ``(T, n)``. ``"task"``: the rule has `parts`, and each depends on its
        own task vector alone, so that these may come one by one, ``(1, *shape)``. ``"tensor"``: all of the tensor.
        """
        return "tensor"

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    def default_scale(self) -> float:
        """The scaling coefficient where the recipe gives none."""
        return self.published_scale

    def doubt(self, tasks: int) -> str | None:
        """Return why a merge of a number of tasks may not be what is wanted; planning warns of it."""
        return None

    def survey(self, stream: Stream) -> Survey | None:
        """Gather what `combine` needs to know of the whole model, in one or more passes over its blocks."""
        return None

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task's part of the sum, ``(T, *shape) -> (T, *shape)``; it may write to ``tau``."""
        why = f": {self.no_parts}" if self.no_parts else ""
        raise NotImplementedError(f"{self.name} is no sum over tasks, so it has no parts{why}.")

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return the merged task vector, ``(T, *shape) -> (*shape)``; it may write to ``tau``."""
        return sum_tasks(self.parts(tau, context))

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor ``(*shape)`` of a number of tasks is merged as a matrix; most rules know none."""
        return False

    def as_matrices(self, tau: Tensor, context: MergeContext) -> Tensor | None:
        """Return a stack as matrices, ``(T, *shape) -> (T, shape[0], rest)``; None where this is none to the rule."""
        return tau.flatten(2) if self.treats_as_matrix(context.name, tau.shape[1:], len(tau)) else None

    def matrices(self, stream: Stream) -> tuple[str, ...]:
        """Return the names of the tensors that are merged as matrices."""
        shapes, tasks = stream.shapes, len(stream.tasks)
        return tuple(name for name in stream.names if self.treats_as_matrix(name, shapes[name], tasks))

    def treated(self, stream: Stream) -> tuple[str, ...] | None:
        """Return the names of the tensors that the rule does its own with; ``None`` where these are all, always."""
        return self.matrices(stream) if self.works_on_matrices() else None

    @classmethod
    def works_on_matrices(cls) -> bool:
        """Tell whether the rule does something of its own with matrices alone."""
        return cls.treats_as_matrix is not MergeRule.treats_as_matrix

    @classmethod
    def surveys_model(cls) -> bool:
        """Tell whether the rule looks at the whole model before it combines a single tensor."""
        return cls.survey is not MergeRule.survey

    @classmethod
    def has_parts(cls) -> bool:
        """Tell whether the rule is a sum over tasks, with its default hyper-parameters where these decide it."""
        return cls.parts is not MergeRule.parts

    @property
    def is_sum(self) -> bool:
        """Whether the rule is a sum over tasks as it is set, so that it has `parts`."""
        return self.has_parts()

    @classmethod
    def why_no_subspace(cls) -> str:
        """Return why the rule cannot work on elements in a space that the tasks share; empty where it can."""
        if cls.needs:
            return f"its {cls.needs} on each task's data is of the tensors as they are"
        if cls.works_on_matrices():
            return "it treats matrices in a way of its own"
        return "it makes a model for each task" if cls.per_task else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the registered name and the hyper-parameters, ready for JSON."""
        return {"name": self.name, **dataclasses.asdict(self)}  # type: ignore[call-overload]


def merge_rule(name: str, *, paper: str, scale: float = 1.0) -> Callable[[RuleType], RuleType]:
    """Return a class decorator that registers a rule under a name.

    Args:
        name: What ``MergeRecipe(rule=...)`` and the command line call it.
        paper: Address of the paper.
        scale: The published scaling coefficient.
    """

    def register(rule: RuleType) -> RuleType:
        rule.name, rule.paper, rule.published_scale = name, paper, scale
        RULES.register(name, rule)
        return rule

    return register


def get_rule(name: str) -> type[MergeRule[Any]]:
    """Return the class of a registered rule.

    Raises:
        UnknownNameError: No such rule; the message suggests the nearest.

    Example:
        >>> get_rule("ties")(density=0.1)
        TIES(density=0.1, reduce='mean', scope='model')
    """
    return RULES[name]


def make_rule(description: str | Mapping[str, Any] | MergeRule[Any]) -> MergeRule[Any]:
    """Return a rule from a name, from a mapping with a name and hyper-parameters, or as it is.

    Raises:
        UnknownNameError: No such rule or hyper-parameter.
        TypeError: ``description`` is none of these.

    Example:
        >>> make_rule({"name": "dare", "density": 0.9})
        DARE(density=0.9, seed=0)
    """
    if isinstance(description, MergeRule):
        return description
    if isinstance(description, str):
        return get_rule(description)()
    if isinstance(description, Mapping) and "name" in description:
        arguments = dict(description)
        rule = get_rule(arguments.pop("name"))
        return from_values(rule, f"hyper-parameter of {rule.name}", arguments)
    raise TypeError(f"rule must be a name, a mapping with a 'name', or a MergeRule, not {shown(description)}.")

"""`Heads`: what turns a merged model's output, or its features, into the logits of a set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import torch
from torch import Tensor, nn

from lwptv_lightning.checkpoints import some_of
from lwptv_lightning.evaluation.interface import Interface, require_one_tensor
from lwptv_lightning.functional import plain_module
from lwptv_lightning.merging import unset_by
from lwptv_lightning.registry import (
    LoaderName,
    UnknownNameError,
    require_kind,
)
from lwptv_lightning.task_vectors import TaskVectors


class Heads(nn.Module):
    """Heads by the names of their sets, which may hold any characters.

    Args:
        heads: Set name to a head.
        on_features: Whether heads act on a timm model's features, before its own classifier, or else on what the
            model returns.
        instead_of: Tensors of the model's own classifier that are no checkpoint's, so that it is of no use.

    Raises:
        TypeError: A head is no module.

    Example:
        >>> heads = Heads({"svhn": nn.Linear(2, 3), "b.c": nn.Linear(2, 5)})
        >>> list(heads), "b.c" in heads, list(heads.state_dict())[-1]
        (['svhn', 'b.c'], True, 'b%2Ec.bias')
    """

    def __init__(
        self, heads: Mapping[str, nn.Module], *, on_features: bool = False, instead_of: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self.on_features = on_features
        self.instead_of = tuple(instead_of)
        require_kind("heads", heads, Mapping, "a mapping of set names to modules")
        for name, head in heads.items():
            require_kind("a head's name", name, str, "a text")
            self._add(name, head)

    def _add(self, name: str, head: nn.Module) -> None:
        if not isinstance(head, nn.Module):
            raise TypeError(f"the head of {name!r} must be a module, not a {type(head).__name__}.")
        # Not as an attribute: a set may be named as a module's own one is, such as "half".
        self._modules[_key(name)] = head

    @classmethod
    def of(cls, model: nn.Module, vectors: TaskVectors, given: Mapping[str, nn.Module]) -> Heads:
        """Return given heads, and those that task vectors bring along because their shapes differ: the classifiers."""
        require_kind("heads", given, Mapping, "a mapping of set names to modules")
        own = {task: _classifier(model, vectors, task) for task in vectors.tasks} if vectors.classifiers else {}
        return cls({**own, **given}, on_features=bool(own), instead_of=unset_by(model, vectors))

    def keys(self) -> tuple[str, ...]:
        """Return the names."""
        return tuple(map(unquote, self._modules))

    def values(self) -> tuple[nn.Module, ...]:
        """Return the heads."""
        return tuple(self[name] for name in self)

    def items(self) -> tuple[tuple[str, nn.Module], ...]:
        """Return names and heads."""
        return tuple(zip(self.keys(), self.values(), strict=True))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: str) -> bool:
        return _key(name) in self._modules

    def __getitem__(self, name: str) -> nn.Module:
        head = self._modules.get(_key(name)) if isinstance(name, str) else None
        if head is None:
            raise UnknownNameError("head", name, self)
        return head

    def of_loader(self, loader: str) -> str | None:
        """Return the name of the head for a loader; ``None`` where the model itself gives the logits."""
        return LoaderName.parse(loader).name if self else None

    def require_for(self, loaders: Iterable[str]) -> None:
        """Raise `UnknownNameError` where there are heads, but none for one of these loaders."""
        for loader in loaders if self else ():
            if (name := LoaderName.parse(loader).name) not in self:
                raise UnknownNameError(f"head for loader {loader!r}:", name, self)

    def logits(self, model: Any, inputs: Any, name: str | None, interface: Interface | None = None) -> Any:
        """Run a model on inputs, such as images ``(B, C, H, W)``, and a head on its output: ``(B, classes)``.

        ``interface`` tells how the model takes inputs, and what of its output counts; by default a tensor, and all.

        Raises:
            UnknownNameError: No such head.
            ValueError: No head is named, and the model's own classifier is as it was initialised.
        """
        interface = interface or Interface()
        if name is None:
            if self.instead_of:
                raise ValueError(
                    f"the model's own classifier ({some_of(self.instead_of, 2)[:-1]}) is no checkpoint's and as it was "
                    f"initialised: name a head, one of {some_of(self)}"
                )
            return interface.output(model, inputs)
        head = self[name]
        if self.on_features:
            features = model.forward_head(model.forward_features(inputs), pre_logits=True)
        else:
            features = require_one_tensor(interface.output(model, inputs), model)
        return head(features)

    def described(self) -> dict[str, Any]:
        """Return what `restore_` needs to know besides the state dict, as plain values."""
        return {"names": list(self), "on_features": self.on_features, "instead_of": list(self.instead_of)}

    def restore_(self, described: Mapping[str, Any], state: Mapping[str, Tensor], prefix: str) -> None:
        """Make the tasks' own classifiers of a checkpoint; a `ValueError` names another head that was not given."""
        self.on_features = described["on_features"]
        self.instead_of = tuple(described.get("instead_of", ()))
        for name in described["names"]:
            if name not in self:
                start = f"{prefix}{_key(name)}."
                own = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
                if not self.on_features or not {"weight"} <= own.keys() <= {"weight", "bias"}:
                    raise ValueError(f"the checkpoint has a head for {name!r}: give heads={{{name!r}: module, ...}}.")
                self._add(name, _linear(own))


def require_same_classifiers(own: TaskVectors, others: TaskVectors) -> None:
    """Raise a `ValueError` where other task vectors have other classifiers for the tasks than the heads are made of."""
    for task in others.tasks if others.classifiers and others is not own else ():
        if task in own.tasks and own.classifiers:
            heads, classifiers = own.classifier_state(task), others.classifier_state(task)
            equal = heads.keys() == classifiers.keys() and all(
                torch.equal(value, classifiers[name]) for name, value in heads.items()
            )
            if not equal:
                raise ValueError(
                    f"the head of {task!r} is made of other task vectors, whose classifier differs from that of those "
                    "to merge: make a MergeModule of these."
                )


def _key(name: str) -> str:
    """Return a name that may stand in a state dict's, where dots part modules."""
    return name.replace("%", "%25").replace(".", "%2E")


def _classifier(model: nn.Module, vectors: TaskVectors, task: str) -> nn.Linear:
    path, *others = vectors.classifiers
    if others:
        raise ValueError(f"{type(model).__name__} has several classifiers; give heads={{task: module}}.")
    state = {name.removeprefix(f"{path}."): tensor for name, tensor in vectors.classifier_state(task).items()}
    if not isinstance(plain_module(model.get_submodule(path)), nn.Linear) or "weight" not in state:
        raise ValueError(f"the classifier {path!r} of {task!r} is no linear layer; give heads={{task: module}}.")
    return _linear(state)


def _linear(state: Mapping[str, Tensor]) -> nn.Linear:
    classes, features = state["weight"].shape
    head = nn.Linear(features, classes, bias="bias" in state)
    head.load_state_dict(state)
    return head

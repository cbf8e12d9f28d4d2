"""`Heads`: what turns a merged model's output, or its features, into the logits of a set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import torch
from torch import Tensor, nn

from lwptv_lightning.checkpoints import some_of
from lwptv_lightning.evaluation.classifiers import classifier_of, parts_of, place_of
from lwptv_lightning.evaluation.given_heads import HeadsGiven, resolve
from lwptv_lightning.evaluation.heads_file import describe_head, remake
from lwptv_lightning.evaluation.in_place import in_place
from lwptv_lightning.evaluation.interface import Interface, require_one_tensor
from lwptv_lightning.functional import plain_module, plain_name
from lwptv_lightning.merging import unset_by
from lwptv_lightning.registry import LoaderName, UnknownNameError, require_kind, require_known
from lwptv_lightning.task_vectors import TaskVectors, output_paths


class Heads(nn.Module):
    """Heads by the names of their sets, which may hold any characters.

    Args:
        heads: Set name to a head. One with an attribute ``in_place_of``, as those of `heads_from` have it, acts in the
            place of the module or modules of these paths.
        on_features: Whether other heads act in the place of the model's own classifier, or else on what the model
            returns.
        instead_of: Tensors of the model's own classifier that are no checkpoint's, so that it is of no use.
        in_place_of: The paths of that classifier; by default found by the architecture.
        aliases: Set name to the name of another set, whose head it has.

    Raises:
        TypeError: A head is no module.
        ValueError: Names of other sets go round in a circle.

    Example:
        >>> heads = Heads({"svhn": nn.Linear(2, 3), "b.c": nn.Linear(2, 5)}, aliases={"mnist": "svhn"})
        >>> list(heads), "b.c" in heads, list(heads.state_dict())[-1]
        (['svhn', 'b.c', 'mnist'], True, 'b%2Ec.bias')
    """

    def __init__(
        self,
        heads: Mapping[str, nn.Module],
        *,
        on_features: bool = False,
        instead_of: Iterable[str] = (),
        in_place_of: Iterable[str] = (),
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.on_features = on_features
        self.instead_of = tuple(instead_of)
        self.in_place_of = tuple(in_place_of)
        self.aliases = dict(aliases or {})
        self.own_tasks: tuple[str, ...] = ()  # whose heads are their own classifiers
        require_kind("heads", heads, Mapping, "a mapping of set names to modules")
        for name, head in heads.items():
            require_kind("a head's name", name, str, "a text")
            self._add(name, head)
        for name in self.aliases:
            self._owner(name)

    def _add(self, name: str, head: nn.Module) -> None:
        if not isinstance(head, nn.Module):
            raise TypeError(f"the head of {name!r} must be a module, not a {type(head).__name__}.")
        # Not as an attribute: a set may be named as a module's own one is, such as "half".
        self._modules[_key(name)] = head

    def _owner(self, name: str) -> str:
        """Return the set whose head a set has."""
        seen = [name]
        while (name := self.aliases.get(name, name)) != seen[-1]:
            if name in seen:
                raise ValueError(f"heads name each other in a circle: {' -> '.join(map(repr, [*seen, name]))}.")
            seen.append(name)
        return name

    @classmethod
    def of(cls, model: nn.Module, vectors: TaskVectors | None, given: HeadsGiven) -> Heads:
        """Return given heads, and those that task vectors bring along because their shapes differ: the classifiers."""
        if vectors is None:
            modules, aliases = resolve(given, (), model, are_all=False)
            return cls(modules, aliases=aliases)._in(model)
        paths = vectors.classifiers
        modules, aliases = resolve(given, vectors.tasks if paths else (), model, paths=paths)
        own = own_heads(model, vectors, [task for task in vectors.tasks if task not in {**modules, **aliases}])
        heads = cls(
            {**own, **modules},
            on_features=bool(paths),
            instead_of=unset_by(model, vectors),
            in_place_of=paths,
            aliases=aliases,
        )
        heads.own_tasks = tuple(own)
        return heads._in(model)

    def _in(self, model: nn.Module) -> Heads:
        """Return the heads; an `UnknownNameError` names a place that the model has not."""
        known = dict.fromkeys(plain_name(path) for path, _ in plain_module(model).named_modules() if path)
        for name, head in ((unquote(key), head) for key, head in self._modules.items() if head is not None):
            for path in place_of(head):
                require_known(f"module in whose place the head of {name!r} acts:", path, known)
        return self

    def keys(self) -> tuple[str, ...]:
        """Return the names."""
        return (*map(unquote, self._modules), *self.aliases)

    def values(self) -> tuple[nn.Module, ...]:
        """Return the heads."""
        return tuple(self[name] for name in self)

    def items(self) -> tuple[tuple[str, nn.Module], ...]:
        """Return names and heads."""
        return tuple(zip(self.keys(), self.values(), strict=True))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._modules) + len(self.aliases)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _key(self._owner(name)) in self._modules

    def __getitem__(self, name: str) -> nn.Module:
        head = self._modules.get(_key(self._owner(name))) if isinstance(name, str) else None
        if head is None:
            raise UnknownNameError("head", name, self)
        return head

    def of_loader(self, loader: str) -> str | None:
        """Return the name of the head for a loader; ``None`` where the model itself gives the logits."""
        name = LoaderName.parse(loader)
        return name.key_in(self) or name.name if self else None

    def require_for(self, loaders: Iterable[str]) -> None:
        """Raise `UnknownNameError` where there are heads, but none for one of these loaders."""
        for name, loader in ((LoaderName.parse(loader), loader) for loader in loaders if self):
            if name.key_in(self) is None:
                raise UnknownNameError(f"head for loader {loader!r}:", name.name, self)

    def logits(self, model: Any, inputs: Any, name: str | None, interface: Interface | None = None) -> Any:
        """Run a model on inputs, such as images ``(B, C, H, W)``, and a head on its output: ``(B, classes)``.

        ``interface`` tells how the model takes inputs, and what of its output counts; by default a tensor, and all.

        Raises:
            UnknownNameError: No such head.
            ValueError: No head is named, and the model's own classifier is as it was initialised; or a head takes
                another number of features than the model returns.
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
        if place := self.place(name, model):
            return _in_place(model, parts_of(head, place), inputs, interface)
        features = require_one_tensor(interface.output(model, inputs), model)
        _require_taken(name, head, features, model)
        return head(features)

    def place(self, name: str, model: nn.Module) -> tuple[str, ...]:
        """Return the paths of the modules in whose place a head acts; none where it acts on what the model returns.

        Raises:
            ValueError: It is to act there, and it cannot be known which part of the model is its classifier.
        """
        place = place_of(self[name])
        if place or not self.on_features:
            return place
        if found := self.in_place_of or output_paths(plain_module(model)):
            return found
        raise ValueError(
            f"it cannot be known which part of {type(plain_module(model)).__name__} is its classifier, in whose place "
            f"the head of {name!r} acts: say it by the head's attribute in_place_of, the path of a module."
        )

    def described(self, model: nn.Module | None = None) -> dict[str, Any]:
        """Return what `restore_` needs to know besides the state dict, as plain values."""
        names = [name for name in self if name not in self.aliases]
        places = {} if model is None else {name: self.place(name, model) for name in names}
        return {
            "names": names,
            "kinds": {name: describe_head(self[name], place) for name, place in places.items()},
            "aliases": dict(self.aliases),
            "on_features": self.on_features,
            "in_place_of": list(self.in_place_of),
            "instead_of": list(self.instead_of),
        }

    def restore_(
        self, described: Mapping[str, Any], state: Mapping[str, Tensor], prefix: str, model: nn.Module | None = None
    ) -> None:
        """Make the heads of a checkpoint that no one gave; a `ValueError` names one that only the caller can give."""
        self.on_features = described["on_features"]
        self.instead_of = tuple(described.get("instead_of", ()))
        self.in_place_of = tuple(described.get("in_place_of", ()))
        kinds = described.get("kinds", {})
        for name in described["names"]:
            start = f"{prefix}{_key(name)}."
            own = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
            if name not in self or self._is_of_another_place(name, own):
                about = kinds.get(name, {"type": "Linear", "in_place_of": ()})  # all that earlier versions knew
                if self.on_features and not about["in_place_of"]:
                    about = {**about, "in_place_of": output_paths(model) or ("head",)}
                if not about["in_place_of"] and "scale" not in about:
                    raise ValueError(f"the checkpoint has a head for {name!r}: give heads={{{name!r}: module, ...}}.")
                self._add(name, remake(about, own, model, f"the checkpoint's head for {name!r}"))
        self.aliases = {**described.get("aliases", {}), **self.aliases}

    def _is_of_another_place(self, name: str, state: Mapping[str, Tensor]) -> bool:
        """Tell whether a head by `heads_from` was made of another part of the model than a stored one."""
        shapes, stored = (
            {key: value.shape for key, value in each.items()} for each in (self[name].state_dict(), state)
        )
        return bool(place_of(self[name])) and shapes != stored


def _require_taken(name: str, head: nn.Module, features: Tensor, model: nn.Module) -> None:
    """Refuse a linear head of other features than a model returns, such as its own classifier's logits."""
    wanted = getattr(plain_module(head), "in_features", None)
    if not isinstance(wanted, int) or features.ndim < 2 or features.shape[-1] == wanted:
        return
    paths = output_paths(plain_module(model))
    classifier = f", behind its own classifier {paths[0]!r}" if paths else ""
    hint = f"the head's attribute in_place_of = ({paths[0]!r},)" if paths else "output_key=..."
    raise ValueError(
        f"the head of {name!r} takes {wanted} features, and {type(plain_module(model)).__name__} returns "
        f"{tuple(features.shape)}{classifier}. Build the model without a classifier, such as num_classes=0, or say by "
        f"{hint} where the head acts."
    )


def _run_in_place(model: nn.Module, parts: Mapping[str, nn.Module], inputs: Any, interface: Interface) -> Any:
    with in_place(model, parts) as running:
        return interface.output(running, inputs)


_in_place: Any = torch.compiler.disable(_run_in_place)  # type: ignore[no-untyped-call]  # what has one head is no other's


def own_heads(model: nn.Module, vectors: TaskVectors, tasks: Iterable[str] | None = None) -> dict[str, nn.Module]:
    """Return task to the head that is its own classifier, of all tasks or some; none where classifiers are merged."""
    paths = vectors.classifiers
    return {
        task: classifier_of(model, paths, vectors.classifier_state(task), f"the classifier of task {task!r}")
        for task in (vectors.tasks if tasks is None else tasks)
        if paths
    }


def require_same_classifiers(own: TaskVectors, others: TaskVectors, tasks: Iterable[str]) -> None:
    """Raise a `ValueError` where other task vectors have other classifiers for tasks whose heads are made of them."""
    for task in tasks if others.classifiers and others is not own else ():
        if task in others.tasks and task in own.tasks and own.classifiers:
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

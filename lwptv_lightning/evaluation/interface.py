"""`Interface`: where a batch has its inputs and targets, how a model is called, and what of its output are logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from lwptv_lightning.checkpoints import some_of
from lwptv_lightning.functional import plain_module
from lwptv_lightning.registry import UnknownNameError, require_kind, shown

Key: TypeAlias = "str | int"
"""A key of a mapping, a field's name, or a place in a sequence."""
_BATCH_KEYS = "a pair such as ('pixel_values', 'labels') or (('input_ids', 'attention_mask'), 'labels')"


@dataclass(frozen=True)
class Interface:
    """How data and a model meet: the one place that takes batches and outputs apart.

    Args:
        batch_keys: Where a batch has its inputs and its targets: keys of a mapping, such as a dict, transformers'
            ``BatchEncoding`` or a tensordict, names of fields, or places in a sequence. Inputs under several keys,
            given as a tuple or list, are handed to the model by name. By default a batch begins with inputs and
            targets.
        output_key: Which part of what the model returns is its logits, or the features that heads take: a key, a
            field's name or a place. By default the model returns a tensor.

    Raises:
        TypeError: A key is neither a text nor a whole number, or inputs that go by name have none.

    Example:
        >>> import torch
        >>> interface = Interface((("left", "right"), "label"), "logits")
        >>> inputs, targets = interface.unpack({"left": 1, "right": 2, "label": 3, "index": 4})
        >>> inputs, targets
        ({'left': 1, 'right': 2}, 3)
        >>> interface.output(lambda left, right: {"loss": None, "logits": torch.tensor(left + right)}, inputs)
        tensor(3)
    """

    batch_keys: tuple[Key | tuple[str, ...], Key] | None = None
    output_key: Key | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_keys", _batch_keys(self.batch_keys))
        if self.output_key is not None:
            _require_key("output_key", self.output_key)

    def to_dict(self) -> dict[str, Any]:
        """Return what is given as plain values."""
        given = {"batch_keys": self.batch_keys and [*self.batch_keys], "output_key": self.output_key}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def is_by_name(self) -> bool:
        """Whether the model gets its inputs by name."""
        return self.batch_keys is not None and isinstance(self.batch_keys[0], tuple)

    def unpack(self, batch: Any) -> tuple[Any, Any]:
        """Return inputs and targets of a batch.

        Raises:
            UnknownNameError: The batch has no such key.
            TypeError: It is of a kind that has none, or no keys are known.
        """
        if self.batch_keys is not None:
            return self.inputs(batch), _part(batch, self.batch_keys[1], "batch_keys")
        if isinstance(batch, list | tuple) and len(batch) >= 2:
            return batch[0], batch[1]
        keys = [] if isinstance(batch, list | tuple) else _keys_of(batch)
        hint = f" Or name them by batch_keys=(inputs, targets); it has {some_of(map(str, keys))}" if keys else ""
        raise TypeError(
            f"a batch must be (inputs, targets), not {type(batch).__name__}; override unpack for others.{hint}"
        )

    def inputs(self, batch: Any) -> Any:
        """Return the inputs of a batch that may have no targets; as `unpack` does, it raises errors."""
        if self.batch_keys is None:
            return self.unpack(batch)[0]
        wanted = self.batch_keys[0]
        if isinstance(wanted, tuple):
            return {name: _part(batch, name, "batch_keys") for name in wanted}
        return _part(batch, wanted, "batch_keys")

    def alone(self, batch: Any) -> tuple[Any] | None:
        """Return the inputs of a batch that has no targets; ``None`` of any other."""
        if isinstance(batch, Tensor) and not self.is_by_name:
            return (batch,)
        if self.batch_keys is not None:
            return None if self.batch_keys[1] in _keys_of(batch) else (self.inputs(batch),)
        return (batch[0],) if isinstance(batch, list | tuple) and len(batch) == 1 else None

    def run(self, model: Any, inputs: Any) -> Any:
        """Call a model with the inputs of a batch, and return all that it returns."""
        if not self.is_by_name:
            return model(inputs)
        require_kind("inputs", inputs, Mapping, f"a mapping of names to tensors, as batch_keys={self.batch_keys} says")
        return model(**inputs)

    def output(self, model: Any, inputs: Any) -> Any:
        """Call a model with the inputs of a batch, and return what ``output_key`` names.

        Raises:
            UnknownNameError: It returns no such part.
            TypeError: That part is no tensor.
        """
        found = self.run(model, inputs)
        if self.output_key is None:
            return found
        label = _label(model)
        if isinstance(found, Tensor):
            raise TypeError(
                f"output_key={self.output_key!r}: {label} returns one tensor of shape {tuple(found.shape)}, not parts "
                "of which one is to be named; leave output_key out."
            )
        part = _part(found, self.output_key, "output_key")
        if not isinstance(part, Tensor):
            raise TypeError(
                f"output_key={self.output_key!r} of what {label} returns is a {type(part).__name__}, expected a "
                f"tensor. It returns {_described(found)}."
            )
        return part


@contextmanager
def naming_loader(loader: str) -> Iterator[None]:
    """Have an error about a batch, or about what a model returns for it, begin with the loader's name.

    Example:
        >>> with naming_loader("id/a"):
        ...     Interface((0, 3)).unpack((1, 2))
        Traceback (most recent call last):
        lwptv_lightning.registry.lookup.UnknownNameError: loader 'id/a': unknown key in batch_keys: 3. Known: 0, 1.
    """
    try:
        yield
    except UnknownNameError as error:
        error.message = f"loader {loader!r}: {error.message}"
        raise
    except TypeError as error:
        raise TypeError(f"loader {loader!r}: {error}") from error


def require_one_tensor(output: Any, model: Any) -> Tensor:
    """Return what a model returned as its logits or features; a `TypeError` names its parts where it is no tensor."""
    if isinstance(output, Tensor):
        return output
    keys = _keys_of(output)
    likely = "logits" if "logits" in keys else next(iter(keys), None)
    hint = "" if likely is None else f"; say which part is meant, such as output_key={likely!r}"
    raise TypeError(f"{_label(model)} returns {_described(output)}, expected a tensor of logits{hint}.")


def _label(model: Any) -> str:
    return type(plain_module(model) if isinstance(model, nn.Module) else model).__name__


def _batch_keys(given: Any) -> tuple[Key | tuple[str, ...], Key] | None:
    if given is None:
        return None
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise TypeError(f"batch_keys must be {_BATCH_KEYS}, not {shown(given)}.")
    inputs, targets = given
    _require_key("the key of targets in batch_keys", targets)
    if not isinstance(inputs, list | tuple):
        _require_key("the key of inputs in batch_keys", inputs)
        return inputs, targets
    if not inputs or not all(isinstance(name, str) for name in inputs):
        raise TypeError(f"inputs that go to the model by name must have names: batch_keys is {_BATCH_KEYS}.")
    return tuple(inputs), targets


def _require_key(what: str, key: Any) -> None:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise TypeError(f"{what} must be a name or a whole number, not {shown(key)}.")


def _part(whole: Any, key: Key, option: str) -> Any:
    """Return what stands under a key of a mapping, a name of a field or a place of a sequence."""
    if key not in (keys := _keys_of(whole)):
        if not keys:
            raise TypeError(f"{option} names {key!r}, but there is {_described(whole)}.")
        told = (str(known) for known in keys if isinstance(known, str) or known >= 0)
        raise UnknownNameError(f"key in {option}:", key, told)  # type: ignore[arg-type]
    return getattr(whole, key) if isinstance(key, str) and not _is_mapping(whole) else whole[key]


def _keys_of(whole: Any) -> list[Key]:
    """Return all that `_part` takes, names first; a place also counted from the end."""
    names: list[Key] = []
    if _is_mapping(whole):
        names = list(whole.keys())
    elif is_dataclass(whole):
        names = [field.name for field in fields(whole)]
    elif isinstance(whole, tuple):
        names = list(getattr(whole, "_fields", ()))
    size = len(whole) if isinstance(whole, list | tuple) else 0
    if _is_mapping(whole) and hasattr(whole, "to_tuple"):  # of transformers, which is both
        size = len(whole)
    return [*names, *range(size), *range(-size, 0)]


def _is_mapping(whole: Any) -> bool:
    """Tell whether something has keys, also what is no `Mapping` by its class, such as a tensordict."""
    return isinstance(whole, Mapping) or (hasattr(whole, "keys") and hasattr(whole, "__getitem__"))


def _described(whole: Any) -> str:
    kind = type(whole).__name__
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    if names := [str(key) for key in _keys_of(whole) if isinstance(key, str)]:
        return f"{article} {kind} with the keys {some_of(names)[:-1]}"
    return f"{article} {kind} of {len(whole)}" if isinstance(whole, list | tuple) else f"{article} {kind}"

"""Reads the pickles of ``torch.save`` as data: nothing that they name is imported, called or built but tensors.

Torch's own reader with ``weights_only=True`` runs no foreign code either, but it does build what the file asks for, as
large as the file says, with functions whose list grows. Here a pickle is a list of instructions of which those are
followed that containers, plain values and views of stored numbers are made of. So what is made of a file grows with its
size alone, whatever it says; other objects become an `Opaque`, and code is refused by its name.

It knows the instructions that torch's reader knows.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.rebuilt import REBUILD, STORAGES, Named, Opaque, known_name, rebuilt, view_of


class Readable(Protocol):
    """What is read of a file."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102

    def readline(self) -> bytes: ...  # noqa: D102


_MOST_ARGUMENTS = 16
Storages = Callable[[str, torch.dtype, int], Tensor]
"""Returns stored numbers, ``(n,)``, by their key, dtype and number."""


def read_pickle(file: Readable, storages: Storages) -> Any:
    """Return what a pickle holds: mappings, lists, plain values, tensors, and what stands for the rest.

    Args:
        file: Stands where the pickle begins, and afterwards behind it.
        storages: Returns the stored numbers that tensors are views of.

    Raises:
        ForeignCodeError: It names a class or function that no weights are made of.
        Exception: It is damaged; any exception whatever.
    """
    return _Machine(storages).run(file)


class _Machine:
    """Follows instructions, as `pickle.Unpickler` does."""

    def __init__(self, storages: Storages) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0

    def run(self, file: Readable) -> Any:
        for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
            self._steps += 1
            if opcode.name == "STOP":
                break
            if opcode.name in _VALUES:
                self._stack.append(_VALUES[opcode.name](argument))
            elif opcode.name in _INSTRUCTIONS:
                _INSTRUCTIONS[opcode.name](self, argument)
            else:
                raise ValueError(f"the instruction {opcode.name}, which torch.save does not use")
        return self._stack.pop()

    def _get(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _mark(self, _: None) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _tuple(self, _: None) -> None:
        items = self._since_mark()
        self._stack.append(tuple(items))

    def _tuple_of(self, length: int) -> None:
        if len(self._stack) < length:
            raise IndexError("an empty stack")
        self._stack[-length:] = [tuple(self._stack[-length:])]

    def _append(self, _: None) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _appends(self, _: None) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError("items are added to what is no list")
        self._stack[-1].extend(items)

    def _set_item(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _set_items(self, _: None) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not dict:
            raise TypeError("entries are set in what is no mapping")
        self._stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        module = {"__builtin__": "builtins"}.get(module, module)  # as Python 2 calls it, and protocol 2 with it
        self._stack.append(Named(known_name(f"{module}.{name}")))

    def _persistent(self, _: None) -> None:
        kind, storage, key, _location, numel, *view = _few(self._stack.pop())
        if kind != "storage" or type(storage) is not Named or type(key) is not str or type(numel) is not int:
            raise TypeError("what is referred to is no storage")
        name = storage.name.rpartition(".")[2]
        if name not in STORAGES:
            self._stack.append(Opaque(storage.name))  # of quantised numbers
            return
        numbers = self._storages(key, STORAGES[name], numel)
        if view and view[0] is not None:  # a part of a storage, in files of early versions
            _, start, length = view[0]
            numbers = view_of(numbers, start, (length,), (1,))
        self._stack.append(numbers)

    def _build(self, _: None) -> None:
        self._stack.pop()
        if isinstance(self._stack[-1], Tensor):
            raise TypeError("the state of a tensor is set in a way that torch.save does not use")

    def _new(self, _: None) -> None:
        arguments, kind = _few(self._stack.pop()), self._stack.pop()
        if kind == Named("torch.nn.parameter.Parameter") and arguments and isinstance(arguments[0], Tensor):
            self._stack.append(arguments[0])
        else:
            self._stack.append(Opaque(kind.name))

    def _reduce(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._called(function, arguments))

    def _called(self, function: Any, arguments: Any) -> Any:
        if type(function) is not Named:
            raise TypeError("something is called that is no function")
        name, arguments = function.name, _few(arguments)
        if name in ("collections.OrderedDict", "collections.Counter") and not arguments:
            return {}
        if name == "collections.OrderedDict":
            return self._copied(*arguments)
        if name == "torch._tensor._rebuild_from_type_v2":  # of a tensor with attributes, or of another class
            inner, kind, own, _state = arguments
            plain = kind in (Named("torch.Tensor"), Named("torch.nn.parameter.Parameter"))
            return self._called(inner, own) if plain else Opaque(name)
        if name.startswith(REBUILD):
            return rebuilt(name.removeprefix(REBUILD), arguments)
        return Opaque(name)

    def _copied(self, items: Any) -> dict[Any, Any]:
        """Return a mapping of some pairs; not of ones that were copied before, of which little could make much."""
        self._steps -= len(items)
        if self._steps < 0:
            raise ValueError("the same entries are copied again and again")
        pairs = items.items() if type(items) is dict else items
        return {_key(key): value for key, value in pairs}


_VALUES: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWFALSE": lambda _: False,
    "NEWTRUE": lambda _: True,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "EMPTY_SET": lambda _: Opaque("set"),
    "SHORT_BINSTRING": lambda text: text.encode("latin-1").decode(),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "LONG1"), lambda value: value),
}
"""Instructions that put a value on the stack."""
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, version: None,
    "GLOBAL": _Machine._global,
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "BINPERSID": _Machine._persistent,
    "BUILD": _Machine._build,
    "NEWOBJ": _Machine._new,
    "REDUCE": _Machine._reduce,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine._get),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine._put),
}


def _few(arguments: Any) -> tuple[Any, ...]:
    """Return arguments as they are; of many, which could be passed again and again, no function of torch's has any."""
    if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
        raise TypeError("something is called in a way that torch.save does not use")
    return arguments


def _key(value: Any) -> Any:
    """Return what a mapping is to have as its key; others than names and numbers could take for ever to compare."""
    is_plain = value is None or type(value) in (str, bool) or (type(value) is int and abs(value) < 1 << 60)
    return value if is_plain else Opaque(type(value).__name__)

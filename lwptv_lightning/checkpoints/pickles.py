"""Reads the pickles of ``torch.save`` as data: nothing that they name is imported, called or built but tensors.

Torch's own reader with ``weights_only=True`` runs no foreign code either, but it does build what the file asks for, as
large as the file says, with functions whose list grows. Here a pickle is a list of instructions of which those are
followed that containers, plain values and views of stored numbers are made of. So what is made of a file grows with its
size alone, whatever it says; all other objects, whatever class or function they are of, become an `Opaque`, which knows
what would have been called and with what, and calls nothing.

It knows the instructions that pickle writes from protocol 2 on, in which torch saves.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.rebuilt import REBUILD, STORAGES, Named, Opaque, rebuilt, view_of


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

    def _memoize(self, _: None) -> None:
        self._put(len(self._memo))

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
        if type(self._stack[-1]) is list:
            self._stack[-1].extend(items)
        elif type(self._stack[-1]) is not Opaque:
            raise TypeError("items are added to what is no list")

    def _add_items(self, _: None) -> None:
        self._since_mark()
        if type(self._stack[-1]) is not Opaque:
            raise TypeError("items are added to what is no set")

    def _frozen_set(self, _: None) -> None:
        self._since_mark()
        self._stack.append(Opaque("frozenset"))

    def _set_item(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _set_items(self, _: None) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is dict:
            self._stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))
        elif type(self._stack[-1]) is not Opaque:
            raise TypeError("entries are set in what is no mapping")

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        module = {"__builtin__": "builtins"}.get(module, module)  # as Python 2 calls it, and protocol 2 with it
        self._stack.append(Named(f"{module}.{name}"))

    def _global_of(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("a class or function whose name is none")
        self._stack.append(Named(f"{module}.{name}"))

    def _persistent(self, _: None) -> None:
        kind, storage, key, *more = _few(self._stack.pop())
        if kind == "module" and type(storage) is Named:  # a class with its source, in files of early versions
            self._stack.append(storage)
            return
        _location, numel, *view = more
        if kind != "storage" or type(storage) is not Named or type(key) is not str or type(numel) is not int:
            raise TypeError("what is referred to is no storage")
        home, name = storage.name.rsplit(".", 1)
        if name not in STORAGES or not f"{home}.".startswith("torch."):
            self._stack.append(Opaque(storage.name))  # of quantised numbers
            return
        numbers = self._storages(key, STORAGES[name], numel)
        if view and view[0] is not None:  # a part of a storage, in files of early versions
            _, start, length = view[0]
            numbers = view_of(numbers, start, (length,), (1,))
        self._stack.append(numbers)

    def _build(self, _: None) -> None:
        state, made = self._stack.pop(), self._stack[-1]
        if isinstance(made, Tensor):
            raise TypeError("the state of a tensor is set in a way that torch.save does not use")
        if type(made) is Opaque:
            made.state = state

    def _new(self, _: None) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        if kind == Named("torch.nn.parameter.Parameter") and arguments and isinstance(arguments[0], Tensor):
            self._stack.append(_few(arguments)[0])
        else:
            self._stack.append(_unmade(kind, arguments))

    def _new_with_names(self, _: None) -> None:
        self._stack.pop()
        self._new(None)

    def _reduce(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._called(function, arguments))

    def _called(self, function: Any, arguments: Any) -> Any:
        """Return what a function makes of its arguments: one of those that tensors and mappings are made by, only."""
        name = function.name if type(function) is Named else ""
        if name in ("collections.OrderedDict", "collections.Counter") and arguments == ():
            return {}
        if name == "collections.OrderedDict":
            return self._copied(*_few(arguments))
        if name == "torch._tensor._rebuild_from_type_v2":  # of a tensor with attributes, or of another class
            inner, kind, own, _state = _few(arguments)
            plain = kind in (Named("torch.Tensor"), Named("torch.nn.parameter.Parameter"))
            return self._called(inner, own) if plain else _unmade(kind, own)
        if name.startswith(REBUILD):
            return rebuilt(name.removeprefix(REBUILD), _few(arguments))
        return _unmade(function, arguments)

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
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "LONG4"), lambda value: value),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), lambda value: value),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), lambda _: Opaque("bytes")),
}
"""Instructions that put a value on the stack."""
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    "POP": lambda machine, _: machine._stack.pop(),
    "POP_MARK": lambda machine, _: machine._since_mark(),
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._global_of,
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "ADDITEMS": _Machine._add_items,
    "FROZENSET": _Machine._frozen_set,
    "BINPERSID": _Machine._persistent,
    "BUILD": _Machine._build,
    "NEWOBJ": _Machine._new,
    "NEWOBJ_EX": _Machine._new_with_names,
    "REDUCE": _Machine._reduce,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine._get),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine._put),
    "MEMOIZE": _Machine._memoize,
}


def _unmade(function: Any, arguments: Any) -> Opaque:
    """Return what stands for an object that is not made: of a class, or of a function's result, or of an object's."""
    if type(arguments) is not tuple or type(function) not in (Named, Opaque):
        raise TypeError("something is called that is no function, or with what are no arguments")
    return Opaque(function.name if type(function) is Named else function.what, arguments)


def _few(arguments: Any) -> tuple[Any, ...]:
    """Return arguments as they are; of many, which could be passed again and again, no function of torch's has any."""
    if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
        raise TypeError("something is called in a way that torch.save does not use")
    return arguments


def _key(value: Any) -> Any:
    """Return what a mapping is to have as its key; others than names and numbers could take for ever to compare."""
    is_plain = value is None or type(value) in (str, bool, Opaque) or (type(value) is int and abs(value) < 1 << 60)
    return value if is_plain else Opaque(type(value).__name__)

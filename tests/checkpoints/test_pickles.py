import argparse
import collections
import datetime
import functools
import io
import pathlib
import pickle

import pytest
import torch
from _helpers.torch_archives import call, many, mapping, name, number, storage, tensor, text, whole

from lwptv_lightning.checkpoints.pickles import read_pickle
from lwptv_lightning.checkpoints.rebuilt import Opaque

NUMBERS = torch.arange(4.0)


def read(*instructions):
    file = io.BytesIO(whole(*instructions) + b"rest")
    content = read_pickle(file, lambda key, dtype, numel: NUMBERS)
    assert file.read() == b"rest"
    return content


@pytest.mark.parametrize("protocol", [2, 3])
def test_plain_values_are_read_as_pickle_reads_them(protocol):
    shared = ["x", 1.5]
    value = {"a": [1, -2, 3 << 40, 300, 70000, None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]}
    value |= {"b": shared, "c": {"d": shared, 3: "ü" * 300, None: {}}}
    found = read_pickle(io.BytesIO(pickle.dumps(value, protocol)), lambda *_: pytest.fail("no storage"))
    assert found == value
    assert found["b"] is found["c"]["d"]


def test_a_tensor_is_a_view_of_what_is_stored():
    found = read(mapping(a=tensor(), b=tensor((2, 2), (1, 2)), c=tensor((), (), 3), d=tensor((0, 3), (3, 1))))
    assert found["a"].data_ptr() == NUMBERS.data_ptr()
    assert torch.equal(found["b"], NUMBERS.reshape(2, 2).T)
    assert found["c"].item() == 3
    assert found["d"].shape == (0, 3)


@pytest.mark.parametrize(
    "broken",
    [
        tensor((5,)),
        tensor((4,), (1,), 1),
        tensor((4,), (2,)),
        tensor((2,), (-1,), 3),
        tensor((-1,)),
        tensor((4,), (1,), -1),
        tensor((4, 1), (1,)),
        tensor((1,) * 65, (1,) * 65),
        tensor((2**70,), (0,), 5),
        tensor(stored=number(3)),
        many(text("storage")) + pickle.BINPERSID,
        many(text("module"), *[number(0)] * 4) + pickle.BINPERSID,
        tensor() + pickle.EMPTY_DICT + pickle.BUILD,
        pickle.BINGET + b"\0",
        pickle.SETITEM,
        pickle.MARK + pickle.SETITEMS,
        number(1) + number(2) + pickle.APPEND,
        pickle.EMPTY_DICT + pickle.MARK + number(1) + pickle.SETITEMS,
        number(1) + pickle.TUPLE2,
        number(1) + pickle.EMPTY_TUPLE + pickle.REDUCE,
        pickle.POP,
        pickle.DUP,
        pickle.EXT1 + b"\1",
        pickle.LIST,
        pickle.BINUNICODE + b"\xff\xff\xff\xffab",
    ],
)
def test_damage_is_an_error(broken):
    with pytest.raises((ValueError, TypeError, LookupError, RuntimeError)):
        read(broken)


class Elsewhere:
    """A class whose objects keep what they are made of, in each way that pickle has."""

    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def __getnewargs_ex__(self):
        return ("x",), {"y": 1}

    def __setstate__(self, state):
        pass


class Listed(list):
    pass


class Mapped(dict):
    pass


def test_objects_of_any_class_are_left_unmade_whatever_the_protocol():
    value = {"n": argparse.Namespace(a=1), "p": pathlib.PurePosixPath("/x/y"), "c": 1j}
    value |= {"f": functools.partial(print, 1), "d": datetime.datetime(2020, 1, 1), "o": Elsewhere(), "s": {1}}
    value |= {"l": Listed([1]), "m": Mapped(a=1), "b": b"x" * 300, "t": frozenset([1]), "z": bytearray(b"x")}
    value |= {"a": torch.ones(3).numpy(), "g": collections.deque([1, 2]), "r": range(3), "k": {(1, 2): 3, 1.5: 4}}
    kept = {"end": [1, "x"], "large": 1 << 3000}
    for protocol in range(2, 6):
        found = read_pickle(io.BytesIO(pickle.dumps(value | kept, protocol)), lambda *_: pytest.fail("no storage"))
        assert found.keys() == value.keys() | kept.keys()
        assert {name for name in value if not isinstance(found[name], Opaque)} == {"k"}
        assert {name: found[name] for name in kept} == kept
        assert found["n"].what == "argparse.Namespace"
        assert found["n"].state == {"a": 1}


@pytest.mark.parametrize("foreign", [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("nowhere", "Known")])
def test_what_a_pickle_names_is_neither_looked_up_nor_called(foreign):
    found = read(call(name(*foreign), text("x")))
    assert (found.what, found.arguments) == (".".join(foreign), ("x",))


def test_numbers_are_stored_in_torchs_storages_alone():
    strange = tensor(stored=storage(kind=("elsewhere", "FloatStorage")))
    with pytest.raises(TypeError, match="of what are no stored numbers"):
        read(strange)


@pytest.mark.parametrize(
    "call_of",
    [
        call(name("builtins", "bytearray"), number(10**11)),
        call(name("torch", "FloatStorage"), number(10**11)),
        call(name("torch", "FloatTensor"), number(10**6), number(10**6)),
        name("torch", "Tensor") + many(number(10**6), number(10**6)) + pickle.NEWOBJ,
        call(name("torch._utils", "_rebuild_wrapper_subclass"), number(1)),
        call(name("collections", "Counter"), text("ab")),
    ],
)
def test_what_no_weights_are_made_of_is_not_made(call_of):
    assert isinstance(read(call_of), Opaque)


def test_ordered_mappings_and_parameters():
    pairs = pickle.EMPTY_LIST + pickle.MARK + many(text("a"), tensor()) + pickle.APPENDS
    for made in (call(name("collections", "OrderedDict"), pairs), call(name("collections", "OrderedDict"))):
        assert type(read(made)) is dict
    hooks = call(name("collections", "OrderedDict"))
    parameter = call(name("torch._utils", "_rebuild_parameter"), tensor(), pickle.NEWTRUE, hooks)
    assert torch.equal(read(parameter), NUMBERS)
    attributes = [name("torch._utils", "_rebuild_tensor_v2"), name("torch", "Tensor")]
    own = many(storage(), number(0), many(number(4)), many(number(1)), pickle.NEWFALSE, hooks)
    with_attributes = call(name("torch._tensor", "_rebuild_from_type_v2"), *attributes, own, mapping(x=number(1)))
    assert torch.equal(read(with_attributes), NUMBERS)


def test_names_that_could_take_for_ever_to_compare_are_left_unmade():
    deep = number(1) + pickle.BINPUT + b"\0"
    for _ in range(60):
        deep += pickle.BINGET + b"\0" + pickle.BINGET + b"\0" + pickle.TUPLE2 + pickle.BINPUT + b"\0"
    _, found = read(many(deep), pickle.EMPTY_DICT, pickle.BINGET, b"\0", number(1), pickle.SETITEM, pickle.TUPLE2)
    assert [type(key) for key in found] == [Opaque]


def copies_of_one_list(count):
    pairs = pickle.EMPTY_LIST + b"".join(many(text(f"{n}"), pickle.NONE) + pickle.APPEND for n in range(count))
    again = name("collections", "OrderedDict") + pickle.BINGET + b"\0" + pickle.TUPLE1 + pickle.REDUCE + pickle.APPEND
    return pickle.EMPTY_LIST, pairs, pickle.BINPUT, b"\0", pickle.APPEND, again * count


def test_entries_are_not_copied_again_and_again():
    assert len(read(*copies_of_one_list(3))) == 4
    with pytest.raises(ValueError, match="the same entries are copied again and again"):
        read(*copies_of_one_list(300))


def test_arguments_are_not_copied_again_and_again():
    long = pickle.MARK + pickle.NONE * 100_000 + pickle.TUPLE + pickle.BINPUT + b"\0"
    for way in (pickle.BINPERSID, pickle.REDUCE):
        function = b"" if way == pickle.BINPERSID else name("torch._utils", "_rebuild_parameter")
        with pytest.raises(TypeError, match="in a way that torch.save does not use"):
            read(long, function, pickle.BINGET + b"\0", way)

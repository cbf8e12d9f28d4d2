"""What is given in the place of something else, and whether a refusal of it is the library's own."""

import contextlib
import math
import signal
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

import lwptv_lightning

KINDS = (ValueError, TypeError, KeyError, OSError)
"""What the library raises, or subclasses of these."""
_PACKAGE = Path(lwptv_lightning.__file__).resolve().parent
_HOMES = (_PACKAGE, _PACKAGE.parent / "callbacks")
_LONGEST = 3000
_SECONDS = 30


class Broken:
    def __repr__(self):
        raise RuntimeError("no words")


def nested(kind, depth=20_000):
    value = kind()
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def endless():
    value = {}
    value["a"] = value
    return value


VALUES = {
    "None": None,
    "3": 3,
    "-1": -1,
    "0.5": 0.5,
    "a word": "word",
    "no text": "",
    "NUL": "a\0b",
    "surrogate": "\udc80",
    "long text": "x" * 100_000,
    "bracket": "(",
    "a list": [],
    "a list of numbers": [1],
    "a list of texts": ["word"],
    "a list of lists": [[]],
    "a list of NaN": [math.nan],
    "a tuple of None": (None,),
    "a set": {1, 2},
    "a dict": {},
    "a dict of numbers": {"a": 1},
    "a dict with numbers as keys": {1: 1},
    "a dict of NaN": {"a": math.nan},
    "an unknown name": {"name": "word"},
    "a name that is none": {"name": []},
    "LiNeS of words": {"name": "lines", "alpha": "x"},
    "deep lists": nested(list),
    "deep dicts": nested(dict),
    "a dict in itself": endless(),
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "1e308": 1e308,
    "many digits": 10**400,
    "too many digits": 10**5000,
    "complex": 1j,
    "True": True,
    "bytes": b"x",
    "a path": Path("nowhere"),
    "a function": len,
    "a class": int,
    "an object": Broken(),
    "a tensor": torch.ones(3),
    "a number as a tensor": torch.tensor(2.0),
    "a dtype": torch.float16,
    "a module": nn.Linear(2, 2),
}


def names_in(value):
    """Return what of a value a message may name it by."""
    found = [repr(value)[:15]] if isinstance(value, str | int | float | bytes | Path) and value != 10**5000 else []
    if isinstance(value, Mapping):
        found += [repr(key) for key in list(value)[:4]] + [repr(each) for each in value.values() if each == "word"]
    if isinstance(value, list | tuple | set):
        found += [repr(each) for each in list(value)[:4] if isinstance(each, str | int | float | None)]
    return found


def refused(what, call, names=()):
    """Make a call, and return whether it was refused; fails where that was not by the library's own words."""

    def late(*_):
        raise SystemError(f"{what}: hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    error = None
    try:
        call()
    except BaseException as raised:
        error = raised
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if error is None:
        return False
    told = f"{what}: {type(error).__name__}: {str(error)[:300]}"
    assert isinstance(error, KINDS), told
    place = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    own = any(home in place.parents for home in _HOMES)
    assert own or (isinstance(error, OSError) and error.filename is not None), f"{told} is raised at {place}"
    assert len(str(error)) < _LONGEST, told
    assert not names or any(name in str(error) for name in names), f"{told} names none of {list(names)[:6]}"
    return True


@contextlib.contextmanager
def nothing_written(folder):
    """Check that a folder holds afterwards what it held before."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    yield
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert after == before, f"written: {sorted(map(str, after.keys() ^ before.keys()))}"

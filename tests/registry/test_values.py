import copy
import pickle

import pytest

from lwptv_lightning.registry import FrozenDict, parse_bytes


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1), (512_000_000, 512_000_000), ("512MB", 512_000_000), ("1.5 GiB", 3 << 29), ("2kb", 2000), ("7", 7)],
)
def test_sizes(value, expected):
    assert parse_bytes("max_memory", value) == expected


NO_SIZES = ["", "MB", "-1", 0, 0.5, "0GB", "0.0001KB", "1XB", 1.5j, True, None, 10**400, "9" * 400]


@pytest.mark.parametrize("value", NO_SIZES, ids=lambda value: str(value)[:8])
def test_what_is_no_size_is_refused(value):
    with pytest.raises(ValueError, match="max_memory must be a number of bytes above 0 such as 512MB or 2GiB, not"):
        parse_bytes("max_memory", value)


def test_frozen_mappings_are_equal_in_the_same_order_and_cannot_be_changed():
    first, second = FrozenDict({"a": 1, "b": 2}), FrozenDict({"b": 2, "a": 1})
    assert first == {"b": 2, "a": 1}
    assert first != second
    assert first == FrozenDict(a=1, b=2)
    assert hash(first) == hash(FrozenDict(a=1, b=2))
    for other in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        assert (type(other), other) == (FrozenDict, first)
    for change in (
        lambda: first.update(a=2),
        lambda: first.pop("a"),
        lambda: first.setdefault("c", 1),
        first.clear,
        first.popitem,
        lambda: first.__setitem__("a", 2),
        lambda: first.__delitem__("a"),
        lambda: first.__ior__({"a": 2}),
    ):
        with pytest.raises(TypeError, match="frozen"):
            change()

import json

import pytest

from lwptv_lightning.registry import parse_json, shown


class Broken:
    def __repr__(self):
        raise RuntimeError("no")


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", ["text", 3, 0.5, None, ["a", 1], {"a": [1]}, (1, 2)])
def test_what_is_short_is_shown_as_it_is(value):
    assert shown(value) == repr(value)


LARGE = [nested(50_000), "x" * 10**6, 10**5000, list(range(10**5)), Broken(), b"x" * 10**5]


@pytest.mark.parametrize("value", LARGE, ids=range(len(LARGE)))
def test_whatever_is_given_is_shown_in_a_few_words(value):
    assert 0 < len(shown(value)) < 500


def test_what_holds_itself():
    value = {}
    value["a"] = value
    assert shown(value).startswith("{'a': {'a': ")


NO_JSON = ["", "{", "x", "[1,]", "[" * 10**5, '{"a":' * 10**5, '{"a": 1, "a": 1}', "\ufeff{}", b"\xff", "9" * 10**5]


@pytest.mark.parametrize("text", NO_JSON, ids=range(len(NO_JSON)))
def test_text_that_is_no_json_is_named(text):
    with pytest.raises(ValueError, match=r"^a table is no JSON .*\(.+\)\.$"):
        parse_json(text, "a table")


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True, "é"]}, [], 3, "text"])
def test_json_is_read(value):
    assert parse_json(json.dumps(value), "a table") == value

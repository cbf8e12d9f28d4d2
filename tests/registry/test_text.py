"""Any name is text on one line, whatever is in it, and honest names stay as they are."""

import io
import time

import pytest
from _helpers.odd_names import HONEST, HOSTILE, steering

from lwptv_lightning.registry import any_character, encodable, printable, printable_name, shown


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_steers_a_terminal(name):
    for text in (printable(name), printable_name(name), shown(name)):
        assert not steering(text)
        assert "\n" not in text
        assert printable(text) == text
        text.encode()


@pytest.mark.parametrize("name", HONEST)
def test_honest_names_stay(name):
    assert printable(name) == printable_name(name) == name


def test_escapes_are_pythons():
    assert printable("\x1b[0m\r\u202e\ud800\U000e0041\n\t") == r"\x1b[0m\r\u202e\ud800\U000e0041\n\t"


def test_what_joins_is_escaped_where_nothing_is_joined():
    for name in ("a\u200db", "\u200d", "中\u200d", "a\u200c", "a\ufe0f", "\ufe0f", "❤\ufe0f\ufe0f"):
        assert printable(name) != name


def test_a_long_name_keeps_its_ends():
    name = "first" + "x" * 1_000_000 + "last"
    began = time.perf_counter()
    for text, most in ((printable(name), 5_000), (printable_name(name), 300), (shown(name), 300)):
        assert len(text) < most
        assert "first" in text
        assert "last" in text
    assert "[999809 characters more]" in printable_name(name)
    assert time.perf_counter() - began < 0.5


def test_shown_is_what_python_writes():
    for name in ("fc.weight", "it's", 'a"b', "a\\b", "中文", 3):
        assert shown(name) == repr(name)
    assert shown("\x1b\u202e") == r"'\x1b\u202e'"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_takes_what_its_encoding_has_not(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with any_character(stream):
        print("中\ud800", file=stream, flush=True)
    assert stream.buffer.getvalue().decode(encoding).strip() in ("中\\ud800", "\\u4e2d\\ud800")
    assert stream.errors == "strict"


def test_a_stream_has_its_way_again_after_an_error():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with pytest.raises(KeyError), any_character(stream):
        raise KeyError
    assert stream.errors == "strict"
    with any_character(io.StringIO()):  # which has no encoding
        pass


def test_what_is_encodable_stays():
    assert encodable("中\x1b") == "中\x1b"
    assert encodable("\udcff").encode() == rb"\udcff"

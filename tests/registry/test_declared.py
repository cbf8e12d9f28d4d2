"""Declared fields: what each kind takes, holds and says, and how a dataclass is made and documented from them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from lwptv_lightning.registry import (
    Converted,
    FrozenDict,
    UnknownNameError,
    check_parameters,
    choice,
    declared,
    describe_field,
    documented,
    explain_field,
    flag,
    fraction,
    from_values,
    number,
    patterns,
    per_task,
    per_task_by_tensor,
    whole,
)


@documented
@dataclass(frozen=True)
class Settings:
    """All kinds.

    Raises:
        ValueError: Something is wrong.
    """

    density: float = number(0.5, "(0, 1]", "a number")
    unset: float | None = number(None, "(-inf, inf)")
    part: float = fraction(0.0, "a part")
    count: int = whole(2, 1)
    seed: int = whole(0, None)
    active: bool = flag(False)
    colour: str = choice("red", ("red", "blue"), "a colour")
    globs: Converted[list[str], tuple[str, ...]] = patterns(())
    weights: tuple[float, ...] | None = per_task()
    table: Mapping[str, tuple[float, ...]] | None = per_task_by_tensor()
    length: Converted[str, int] = declared("abc", "words", lambda name, value: len(value), "a length")

    def __post_init__(self) -> None:
        check_parameters(self)


@pytest.mark.parametrize(
    ("name", "given", "held"),
    [
        ("density", 1, 1.0),
        ("unset", None, None),
        ("unset", -3, -3.0),
        ("part", 1, 1.0),
        ("count", 1, 1),
        ("seed", -5, -5),
        ("active", True, True),
        ("colour", "blue", "blue"),
        ("globs", ["a*"], ("a*",)),
        ("weights", [1, 2.5], (1.0, 2.5)),
        ("table", {"*": [1]}, {"*": (1.0,)}),
        ("length", "four", 4),
    ],
)
def test_what_is_given_is_held_in_its_form(name, given, held):
    value = getattr(Settings(**{name: given}), name)
    assert (value, type(value)) == (held, FrozenDict if isinstance(held, dict) else type(held))


@pytest.mark.parametrize(
    ("name", "wrong", "error", "words"),
    [
        ("density", 0, ValueError, r"density must be a number in \(0, 1\], not 0"),
        ("density", 1.5, ValueError, r"density must be a number in \(0, 1\], not 1.5"),
        ("density", None, TypeError, "density must be a number, not None"),
        ("unset", float("nan"), ValueError, "unset must be finite, not nan"),
        ("part", 40, ValueError, r"part must lie in \[0, 1\], not 40; it is a fraction, not percent"),
        ("part", "0.5", TypeError, r"part must be a number in \[0, 1\], not '0.5'"),
        ("count", 0, ValueError, "count must be at least 1, not 0"),
        ("seed", 1.0, TypeError, "seed must be a whole number, not 1.0"),
        ("active", 1, TypeError, "active must be true or false, not 1"),
        ("colour", "bleu", UnknownNameError, "unknown colour 'bleu'. Did you mean 'blue'"),
        ("globs", "a*", TypeError, "globs must be a sequence of globs, not 'a\\*'"),
        ("globs", [1], TypeError, r"globs must be a sequence of globs, not \[1\]"),
        ("weights", [True], TypeError, "weights must be a number, not True"),
        ("table", [1], TypeError, "table must map globs of tensor names to numbers, not be a list"),
        ("table", {"*": ["a"]}, TypeError, r"table\['\*'\] must be a number, not 'a'"),
    ],
)
def test_wrong_values_are_named(name, wrong, error, words):
    with pytest.raises(error, match=words):
        Settings(**{name: wrong})


def test_from_values_makes_one_and_knows_its_fields():
    assert from_values(Settings, "setting", {"part": 1}) == Settings(part=1)
    with pytest.raises(UnknownNameError, match="unknown setting 'prt'. Did you mean 'part'"):
        from_values(Settings, "setting", {"prt": 1})


def test_fields_are_described_and_documented():
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    assert describe_field(fields["colour"]) == 'colour = "red" in red, blue'
    assert explain_field(fields["density"]) == "a number, in (0, 1] (default: 0.5)"
    assert explain_field(fields["colour"]) == "a colour: red, blue (default: red)"
    first, *_, raises, _ = Settings.__doc__.splitlines()
    assert (first, raises) == ("All kinds.", "Raises:")
    assert "\n\nArgs:\n    density: a number, in (0, 1] (default: 0.5).\n" in Settings.__doc__


def test_an_annotation_is_what_the_field_takes():
    assert Converted[str, int] is str

import argparse
from dataclasses import dataclass

import pytest

from lwptv_lightning.cli.arguments import add_fields, add_naming, given_fields, naming_options, pairs, settings
from lwptv_lightning.registry import flag, number, patterns


@dataclass(frozen=True)
class Declared:
    step_size: float = number(0.5, "(0, 1]", "how far")
    keep: tuple[str, ...] = patterns((), "what stays")
    switch: bool = flag(False, "has no option")


def parse(*arguments, prefix=""):
    parser = argparse.ArgumentParser()
    add_fields(parser, Declared, prefix)
    return given_fields(parser.parse_args(arguments), Declared, prefix)


def test_fields_become_options_that_are_checked_under_their_names():
    assert parse() == {}
    assert parse("--step-size", "0.25", "--keep", "a", "--keep", "b") == {"step_size": 0.25, "keep": ("a", "b")}
    assert parse("--my-step-size", "1", prefix="my-") == {"step_size": 1.0}
    with pytest.raises(ValueError, match=r"--my-step-size must be a number in \(0, 1\], not 2.0"):
        parse("--my-step-size", "2", prefix="my-")
    with pytest.raises(SystemExit):
        parse("--switch", "true")


def test_pairs_and_settings():
    assert pairs("a task", ["a=x", "b=y=z"]) == {"a": "x", "b": "y=z"}
    assert settings("--set", ["a=1", "b=[true]", "c=word"]) == {"a": 1, "b": [True], "c": "word"}
    for wrong in ("a", "=x", "a="):
        with pytest.raises(ValueError, match=f"a task must be given as NAME=VALUE, not '{wrong}'"):
            pairs("a task", [wrong])
    with pytest.raises(ValueError, match="a task is given twice: 'a'"):
        pairs("a task", ["a=x", "a=y"])


def name(*arguments):
    parser = argparse.ArgumentParser()
    add_naming(parser)
    return naming_options(parser.parse_args(arguments))


def test_a_model_is_made_with_its_options():
    options = ["--model", "vit_tiny_patch16_224", "--model-option", "num_classes=3", "--model-option", "depth=1"]
    given = name(*options, "--prefix", "net.")
    assert given["prefix"] == "net."
    assert (given["model"].num_classes, len(given["model"].blocks)) == (3, 1)
    with pytest.raises(ValueError, match="^--model: Unknown model"):
        name("--model", "vit_tiniest")
    with pytest.raises(ValueError, match="--model-option needs --model"):
        name("--model-option", "depth=1")

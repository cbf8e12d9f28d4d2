import re
import time

import pytest

from lwptv_lightning.checkpoints.patterns import first_endings, found_groups

PATHS = ["layers.0.attn.q_proj", "layers.0.attn.k_proj", "layers.11.mlp.fc1", "q_proj", "xq_proj", "layersX0.mlp.fc1"]
LINEAR = ["q_proj", "0.attn.q_proj", r"layers\.0\.attn\.k_proj", "^q_proj", "q_proj$", "q_proj|k_proj", "[qk]_proj"]
OTHERS = [r"layers\.\d+\.mlp\.fc1", r".*\.0\..*", "(q|k)_proj", r"attn\.\w{1,2}proj", "(?i:Q_PROJ)", "x?q_proj"]


def by_peft(patterns, path):
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", path)), None)


@pytest.mark.parametrize("patterns", [LINEAR, [*LINEAR[::-1], *OTHERS], OTHERS[:1], OTHERS[1:]], ids=len)
def test_the_first_pattern_that_ends_a_path_as_peft_finds_it(patterns):
    for chosen in (patterns, *([pattern] for pattern in patterns if pattern in LINEAR)):
        assert first_endings(chosen, PATHS) == [by_peft(chosen, path) for path in PATHS]


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", ".*.*.*.*.*.*.*.*x"])
def test_a_pattern_that_runs_for_ever_is_stopped(pattern):
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"patterns that take more than 0\.5 s to match"):
        first_endings([pattern], ["a" * 300], seconds=0.5)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("pattern", ["[", "a)(b", "(", "*", "a{2,1}"])
def test_what_is_no_pattern_is_named(pattern):
    with pytest.raises(ValueError, match=rf"{re.escape(repr(pattern))}, which is no pattern"):
        first_endings([pattern], PATHS)


GROUPS = [r"blocks\.(\d+)\.", r"(?:a|b)+(\d+)", r"(x)?y", r"^(\d)$", r"(\d+).*(\w+)"]
TEXTS = ["blocks.3.fc", "ab12", "y", "7", "12 ab", "", "é4" * 300]


@pytest.mark.parametrize("pattern", GROUPS)
def test_groups_are_what_a_search_finds(pattern):
    expected = [None if (match := re.search(pattern, text)) is None else list(match.groups()) for text in TEXTS]
    assert found_groups(pattern, TEXTS) == expected
    assert found_groups(pattern, []) == []


@pytest.mark.parametrize("pattern", [r"(?:a+)+$(\d)", r"((?:a|a)*)b", r"(a*)a*a*a*a*a*a*a*b"])
def test_a_pattern_that_would_run_for_ever_is_stopped(pattern):
    with pytest.raises(ValueError, match=r"more than 0\.5 s"):
        found_groups(pattern, ["a" * 4000 + "!"], 0.5)

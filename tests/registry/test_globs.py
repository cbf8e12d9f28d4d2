import pytest

from lwptv_lightning.registry import UnknownNameError, matches, require_matches


def test_one_pattern_of_several_is_enough_and_case_counts():
    assert matches("blocks.1.mlp", ["head", "blocks.[01].*"])
    assert not matches("blocks.1.mlp", ["Blocks.*"])


def test_a_pattern_that_matches_nothing_is_named_with_the_nearest():
    require_matches("layer pattern", ["st*", "head"], iter(["stem", "head"]))
    with pytest.raises(UnknownNameError, match=r"unknown layer pattern 'heat'\. Did you mean 'head'"):
        require_matches("layer pattern", ["st*", "heat"], ["stem", "head"])

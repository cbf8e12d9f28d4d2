import pytest

from lwptv_lightning.registry import Registry, UnknownNameError, matches, nearest, require_known, require_matches


def test_registers_and_lists_in_order():
    registry = Registry("colour")
    assert registry.register("red", 1) == 1
    registry.register("blue", 2)
    assert dict(registry) == {"red": 1, "blue": 2}
    assert "red" in registry
    assert "green" not in registry


def test_refuses_a_name_that_is_taken():
    registry = Registry("colour")
    registry.register("red", 1)
    with pytest.raises(ValueError, match=r"colour 'red' is registered already, as 1"):
        registry.register("red", 2)
    assert registry["red"] == 1


@pytest.mark.parametrize("caught", [KeyError, ValueError, UnknownNameError])
def test_unknown_name_suggests_the_nearest_and_lists_all(caught):
    with pytest.raises(caught) as raised:
        require_known("colour", "rde", ("red", "blue"))
    assert str(raised.value) == "unknown colour 'rde'. Did you mean 'red'? Known: red, blue."


def test_get_falls_back_to_the_default():
    assert Registry("colour").get("red", 7) == 7


def test_a_definition_that_runs_again_takes_its_own_place():
    registry = Registry("score")

    def define():
        def score():
            return None

        return registry.register("score", score)

    define()
    second = define()
    assert registry["score"] is second


def test_nearest_ignores_case_and_says_nothing_where_nothing_is_near():
    assert nearest("TIES", ["ties", "dare"]) == " Did you mean 'ties'?"
    assert nearest("xyz", ["ties", "dare"]) == ""


def test_an_unknown_name_is_a_key_error_and_a_value_error_in_one_line():
    with pytest.raises(UnknownNameError) as caught:
        require_known("rule", "tiess", ["ties", "dare"])
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, ValueError)
    # A KeyError would show its message in quotes.
    assert str(caught.value).startswith("unknown rule 'tiess'. Did you mean 'ties'?")
    assert "dare" in str(caught.value)
    require_known("rule", "ties", iter(["ties"]))


def test_one_pattern_of_several_is_enough_and_case_counts():
    assert matches("blocks.1.mlp", ["head", "blocks.[01].*"])
    assert not matches("blocks.1.mlp", ["Blocks.*"])


def test_a_pattern_that_matches_nothing_is_named_with_the_nearest():
    require_matches("layer pattern", ["st*", "head"], iter(["stem", "head"]))
    with pytest.raises(UnknownNameError, match=r"unknown layer pattern 'heat'\. Did you mean 'head'"):
        require_matches("layer pattern", ["st*", "heat"], ["stem", "head"])

import pytest

from lwptv_lightning.registry import Registry, UnknownNameError, require_known


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

import pytest

from lwptv_lightning.registry import UnknownNameError, nearest, require_known


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

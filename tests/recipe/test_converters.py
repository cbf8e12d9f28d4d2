import pytest
import torch

from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.recipe.converters import elements_ratio, read_dtype, read_elements, read_score, read_task


def test_a_word_of_the_command_line_is_the_ratio_of_elements():
    assert MergeRecipe(elements=elements_ratio("0.25")).elements == read_elements("elements", {"ratio": 0.25})


def test_numbers_are_read_as_words():
    assert read_score("score", "-l2") == "-l2"
    assert read_dtype("dtype", torch.float64) == read_dtype("dtype", "float64") == "float64"


@pytest.mark.parametrize(
    ("read", "name", "wrong"),
    [(read_score, "score", None), (read_elements, "elements", 0.5), (read_task, "task", 3), (read_dtype, "dtype", 3)],
)
def test_what_is_wrong_is_named_with_its_field(read, name, wrong):
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be"):
        read(name, wrong)

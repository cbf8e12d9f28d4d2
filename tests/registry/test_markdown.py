"""What is text stays text in Markdown."""

import re

import pytest
from _helpers.odd_names import HOSTILE, steering

from lwptv_lightning.registry import literal, markdown_table


@pytest.mark.parametrize("name", HOSTILE)
def test_a_cell_is_one_of_its_table_and_nothing_but_text(name):
    table = markdown_table(["model", literal(name)], [[literal(name), "1"]])
    assert not steering(table)
    lines = table.split("\n")
    assert len(lines) == 3
    unescaped = [re.sub(r"\\[!-/:-@\[-`{-~]", "", line) for line in lines]
    assert {line.count("|") for line in unescaped} == {3}
    for line in (unescaped[0], unescaped[2]):
        assert not set("<>`[]*$~&#@") & set(line)
        assert "://" not in line
        assert not re.search(r"\bwww\.", line, re.IGNORECASE)


@pytest.mark.parametrize(
    "name", ["task_arithmetic x 0.3, mean_abs 0.5", "domainnet/clipart", "id 100%", "中文 é", "---"]
)
def test_ordinary_text_stays_as_it_is(name):
    assert literal(name) == name


def test_underscores_that_would_mark_are_escaped():
    assert literal("_a_ b__c a_b") == r"\_a\_ b\_\_c a_b"

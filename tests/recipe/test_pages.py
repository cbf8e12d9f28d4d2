"""The pages of the documentation that are made from the code are current."""

from pathlib import Path

from lwptv_lightning.recipe import choices_markdown, fields_markdown

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_fields_is_what_the_code_says():
    assert (DOCS / "recipe.md").read_text() == fields_markdown(), "run: lwptv rules --recipe > docs/recipe.md"


def test_the_page_of_rules_is_what_the_code_says():
    assert (DOCS / "rules.md").read_text() == choices_markdown(), "run: lwptv rules --markdown > docs/rules.md"

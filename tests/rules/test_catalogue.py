"""The page of rules is current and says something of every rule."""

from pathlib import Path

from lwptv_lightning.rules import RULES, rule_entries, rules_markdown

PAGE = Path(__file__).parents[2] / "docs" / "rules.md"


def test_the_page_is_what_the_code_says():
    assert PAGE.read_text() == rules_markdown(), "run: lwptv rules --markdown > docs/rules.md"


def test_every_rule_has_a_summary_a_paper_and_ranges():
    entries = rule_entries()
    assert [entry.name for entry in entries] == sorted(RULES)
    for entry in entries:
        assert entry.summary.rstrip(".")
        assert entry.paper.startswith("https://")
        assert all(" = " in parameter and " in " in parameter for parameter in entry.parameters)


def test_rule_classes_are_public_names():
    import lwptv_lightning

    assert all(getattr(lwptv_lightning, rule.__name__) is rule for rule in RULES.values())

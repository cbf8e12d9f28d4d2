"""The list of rules says something of every rule."""

from lwptv_lightning.rules import RULES, rule_entries, rules_markdown


def test_the_page_has_every_rule():
    page = rules_markdown()
    assert page.startswith(f"# Merging rules\n\n{len(RULES)} rules;")
    assert all(f"| [`{name}`](" in page for name in RULES)


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

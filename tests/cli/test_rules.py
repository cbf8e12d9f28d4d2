import json

from lwptv_lightning.cli import main
from lwptv_lightning.modifiers import modifier_entries
from lwptv_lightning.recipe import choices_markdown, fields_markdown
from lwptv_lightning.rules import rule_entries


def test_rules_are_listed_with_their_hyper_parameters(capsys):
    main(["rules"])
    printed = capsys.readouterr().out
    for entry in rule_entries():
        assert f"{entry.name}: {entry.summary}" in printed
        assert all(parameter in printed for parameter in entry.parameters)
    for beside in modifier_entries():
        assert f"{beside.field}={beside.name}: {beside.summary}" in printed
        assert all(parameter in printed for parameter in beside.parameters)


def test_rules_and_modifiers_are_one_document(capsys):
    main(["rules", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert [rule["name"] for rule in said["rules"]] == [entry.name for entry in rule_entries()]
    assert [each["name"] for each in said["modifiers"]] == [entry.name for entry in modifier_entries()]


def test_pages_of_the_documentation_are_printed(capsys):
    for option, page in (("--markdown", choices_markdown()), ("--recipe", fields_markdown())):
        main(["rules", option])
        assert capsys.readouterr().out == page

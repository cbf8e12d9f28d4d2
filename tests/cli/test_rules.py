from lwptv_lightning.cli import main
from lwptv_lightning.recipe import fields_markdown
from lwptv_lightning.rules import rule_entries, rules_markdown


def test_rules_are_listed_with_their_hyper_parameters(capsys):
    main(["rules"])
    printed = capsys.readouterr().out
    for entry in rule_entries():
        assert f"{entry.name}: {entry.summary}" in printed
        assert all(parameter in printed for parameter in entry.parameters)


def test_pages_of_the_documentation_are_printed(capsys):
    for option, page in (("--markdown", rules_markdown()), ("--recipe", fields_markdown())):
        main(["rules", option])
        assert capsys.readouterr().out == page

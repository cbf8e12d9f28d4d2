"""``lwptv rules``."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--markdown", action="store_true", help="as the page docs/rules.md")
    parser.add_argument("--recipe", action="store_true", help="the fields of a recipe instead, as docs/recipe.md")


def run(options: argparse.Namespace) -> None:
    """List the merging rules."""
    from lwptv_lightning.recipe import fields_markdown
    from lwptv_lightning.rules import rule_entries, rules_markdown

    if options.recipe or options.markdown:
        print(fields_markdown() if options.recipe else rules_markdown(), end="")
        return
    for entry in rule_entries():
        needs = f"needs {entry.needs} statistics" if entry.needs else "needs no data"
        print(f"{entry.name}: {entry.summary}")
        print(f"    {entry.paper}; {needs}; scope: {entry.scope}; published scale {entry.scale:g}")
        print(f"    parts: {entry.parts_in_words}")
        print(f"    tensors: {entry.tensors}")
        for parameter in entry.parameters:
            print(f"    {parameter}")

"""``lwptv rules``."""

import argparse

from lwptv_lightning.cli.results import Result

EXAMPLE = """lwptv rules
lwptv rules --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--markdown", action="store_true", help="as the page docs/rules.md")
    parser.add_argument("--recipe", action="store_true", help="the fields of a recipe instead, as docs/recipe.md")


def run(options: argparse.Namespace) -> Result:
    """List the merging rules, and what stands beside any of them."""
    from lwptv_lightning.modifiers import modifier_entries
    from lwptv_lightning.recipe import choices_markdown, fields_markdown
    from lwptv_lightning.rules import rule_entries

    if options.recipe or options.markdown:
        text = fields_markdown() if options.recipe else choices_markdown()
        return Result({"markdown": text}, [text.removesuffix("\n")])
    lines = []
    for entry in rule_entries():
        needs = f"needs {entry.needs} statistics" if entry.needs else "needs no data"
        lines.append(f"{entry.name}: {entry.summary}")
        lines.append(f"    {entry.paper}; {needs}; scope: {entry.scope}; published scale {entry.scale:g}")
        lines.append(f"    parts: {entry.parts_in_words}")
        lines.append(f"    tensors: {entry.tensors}")
        lines += [f"    {parameter}" for parameter in entry.parameters]
    for beside in modifier_entries():
        lines.append(f"{beside.field}={beside.name}: {beside.summary}")
        lines.append(f"    {beside.paper}; beside any rule")
        lines += [f"    {parameter}" for parameter in beside.parameters]
    return Result({"rules": rule_entries(), "modifiers": modifier_entries()}, ["\n".join(lines)])

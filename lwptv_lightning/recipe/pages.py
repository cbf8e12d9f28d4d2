"""The pages of the documentation that list what a recipe may hold, made from the code."""

from __future__ import annotations

from dataclasses import fields

from lwptv_lightning.recipe.recipe import MergeRecipe
from lwptv_lightning.recipe.scaling import LiNeS
from lwptv_lightning.registry import explain_field


def fields_markdown() -> str:
    """Return the page ``docs/recipe.md``."""
    page = "# What a recipe holds\n\nMade by `lwptv rules --recipe > docs/recipe.md`.\n"
    for name, cls in {"MergeRecipe": MergeRecipe, "layer_scaling=LiNeS": LiNeS}.items():
        lines = (f"- **{field.name}**: {explain_field(field)}\n" for field in fields(cls))
        page += f"\n## `{name}(...)`\n\n{''.join(lines)}"
    return page


def choices_markdown() -> str:
    """Return the page ``docs/rules.md``: rules, and what stands beside any of them."""
    # Imported here, because the command line's help lists a recipe's fields, without a wait for torch.
    from lwptv_lightning.modifiers import modifiers_markdown
    from lwptv_lightning.rules import rules_markdown

    return f"{rules_markdown()}\n{modifiers_markdown()}"

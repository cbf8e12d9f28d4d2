"""What there is to choose from, read off the registries: for ``lwptv rules`` and ``docs/rules.md``."""

import dataclasses
import inspect
from dataclasses import dataclass

from lwptv_lightning.registry import describe_field
from lwptv_lightning.rules._base import RULES


@dataclass(frozen=True)
class RuleEntry:
    """What to know of a merging rule before using it.

    Attributes:
        summary: The first line of its docstring.
        parameters: One text for each hyper-parameter: name, default and range.
        needs: What has to be collected on data; empty for nothing.
        scope: ``"model"`` where it looks at all tensors before it merges one, else ``"tensor"``.
        parts: Whether it is a sum over tasks, so that masks and coefficients can act on its parts.
        no_parts: Why it is none.
        tensors: Which tensors it treats how.
    """

    name: str
    summary: str
    paper: str
    parameters: tuple[str, ...]
    scale: float
    needs: str
    scope: str
    parts: bool
    no_parts: str
    tensors: str

    @property
    def parts_in_words(self) -> str:
        """Whether it has parts, and why not."""
        return "yes" if self.parts else f"no: {self.no_parts}" if self.no_parts else "no"


def rule_entries() -> list[RuleEntry]:
    """Return an entry for each registered rule, by name.

    Example:
        >>> next(entry for entry in rule_entries() if entry.name == "ties").parameters[0]
        'density = 0.2 in (0, 1]'
    """
    return [
        RuleEntry(
            name=name,
            summary=" ".join(inspect.cleandoc(rule.__doc__ or "").partition("\n\n")[0].split()),
            paper=rule.paper,
            parameters=tuple(map(describe_field, dataclasses.fields(rule))),  # type: ignore[arg-type]
            scale=rule.published_scale,
            needs=rule.needs,
            scope="model" if rule.surveys_model() else "tensor",
            parts=rule.has_parts(),
            no_parts=rule.no_parts,
            tensors=rule.tensors,
        )
        for name, rule in sorted(RULES.items())
    ]


def rules_markdown() -> str:
    """Return what the page ``docs/rules.md`` says of rules."""
    lines = [
        "| rule | what it does | hyper-parameters = default in range | scale | needs | scope | parts | tensors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in rule_entries():
        cells = (
            f"[`{entry.name}`]({entry.paper})",
            entry.summary,
            "<br>".join(f"`{parameter}`" for parameter in entry.parameters) or "none",
            f"{entry.scale:g}",
            entry.needs or "no data",
            entry.scope,
            entry.parts_in_words,
            entry.tensors,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return _PAGE.format(count=len(RULES), table="\n".join(lines))


_PAGE = """# Merging rules

{count} rules; `lwptv rules --markdown > docs/rules.md` makes this page from the code. A rule gets the task vectors of
one tensor, `tau_t = theta_t - theta_0`, with pruned rows zero, and returns the merged task vector; the merged model is
the base plus `scale` times that. `scale` in the table is what `MergeRecipe(scale=None)` means: the coefficient of the
rule's source.

- **needs**: what has to be collected on each task's data first (`CollectDataStatistics`); most rules need none.
- **scope**: "model" rules rank or count over the whole model before they merge a tensor; they read the checkpoints more
  than once, and never hold more than a tensor at a time.
- **parts**: the rule is a sum over tasks, with what it decides of all of them held fast: TIES' elected signs, the
  singular vectors of a sum. So `MergeRecipe(prune_on="parts")` can prune what it made of each task, and
  `coefficients={{task: {{glob of layers: number}}}}` weigh it.
- **tensors**: which tensors the rule treats how. A 1x1 convolution, a `weight` of shape `(out, in, 1, 1)` (or of one or
  three such dimensions) with more than one input channel, is the matrix `(out, in)`. A larger kernel is none, as in the
  papers and their code. A merge says how many tensors the rule treated so (`MergePlan.treatment`, `MergeReport`), and
  warns where there are none.

{table}

## What is not here

SLERP and the Karcher mean of *weights*: a rule never sees the base, so that masks compose with it. Use `nuslerp` for
two models, `multislerp` or `karcher` for more: the same means of task vectors.
"""

"""Write docs/study.md and its pictures from the study's tables alone.

python examples/study/page.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import claims
import methods
import pictures
from claims import OWN, POOLED, columns
from methods import BOOTSTRAPS, CORE, DRAWS, IMAGES, LEFT_OUT, RATIOS, UNLABELLED, VALIDATION, Method
from reading import RESULTS, Tables, mean
from words import PAGE

from lwptv_lightning.files import write_whole
from lwptv_lightning.report import markdown_table

DOCS = Path(__file__).parents[2] / "docs"
COMMAND = "python examples/study/run.py --cache DIR --out examples/study/results"
TITLES = {"task_arithmetic": "task arithmetic", "tsv_m": "TSV-M", "adamerging": "AdaMerging"}
VARIANTS = {
    "unpruned": "",
    "learnt": ", learnt",
    "gates": ", LayerGates",
    "mean_abs 0.3": ", `mean_abs` 0.3",
    "mean_abs 0.5": ", `mean_abs` 0.5",
    "gates' mask 0.3": ", gates' mask 0.3",
    "gates' mask 0.5": ", gates' mask 0.5",
    "reversed 0.5": ", reversed 0.5",
    "random 0.5": ", random 0.5",
}
CONTROLS = ("random", "reversed", "gates' mask")
CHOICES = {"best": "`best`", "one standard error": "`one_standard_error`"}
NOTHING = "-"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of results.csv and comparisons.csv")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where to write study.md and the pictures")
    options = parser.parse_args(arguments)
    tables = Tables.read(options.results)
    options.docs.mkdir(parents=True, exist_ok=True)
    drawn = [method for method in core(tables) if method != OWN and not method.variant.startswith(CONTROLS)]
    pictures.draw(tables, options.docs, [(title(method).replace("`", ""), method) for method in drawn])
    write_whole(options.docs / "study.md", page(tables))


def page(tables: Tables) -> str:
    """Return docs/study.md."""
    first, *others = tables.zoos
    return PAGE.format(
        command=COMMAND,
        candidates=len(tables.results),
        zoos=", ".join(f"`{zoo}`" for zoo in tables.zoos),
        masks=len(tables.chosen(first, Method(CORE[0], f"random {RATIOS[0]:g}"), "best")),
        images=IMAGES,
        validation=VALIDATION,
        unlabelled=UNLABELLED,
        draws=len(DRAWS),
        bootstraps=BOOTSTRAPS,
        pooled=POOLED,
        short=claims.short(tables),
        gains=gains(tables, OWN, core(tables)),
        pruning=pruning(tables),
        details=details(tables),
        tuned="\n\n".join(tuned(tables, zoo) for zoo in tables.zoos),
        others=f"![Fronts on the other zoos]({pictures.ZOOS})\n" if others else "",
        choosing=choosing(tables),
        choosing_words=f"{claims.choosing(tables)}\n\n{claims.overshoot(tables)}",
        published=published(tables),
        controls=controls(tables),
        rules=rules(tables, first),
        rules_elsewhere=rules_elsewhere(tables),
        failed=f"{claims.failed(tables)}\n\n{masks(tables)}",
        not_worth=claims.not_worth(tables),
        measured=measured(tables),
        left_out="\n".join(f"- `{rule}`: {why}." for rule, why in LEFT_OUT.items()),
    )


def title(method: Method) -> str:
    """Return a method's name in tables."""
    return TITLES.get(method.rule, f"`{method.rule}`") + VARIANTS[method.variant]


def core(tables: Tables) -> list[Method]:
    """Return the methods around the core rules that were measured on any zoo, in the order of the tables."""
    present = {method for own in tables.methods.values() for method in own}
    order = [Method(rule, variant) for rule in (*CORE, "adamerging") for variant in VARIANTS]
    return [method for method in order if method in present]


def gains(tables: Tables, against: Method, shown: Iterable[Method], figure: str = "best mean", on: str = "ood") -> str:
    """Return what methods gain over the front of one, a column for each zoo."""
    zoos = columns(tables)
    lines = []
    for method in shown:
        found = [tables.difference(zoo, method, against, figure, on) for zoo in zoos]
        if any(found):
            lines.append([title(method), *(str(each) if each else NOTHING for each in found)])
    return markdown_table([f"minus {title(against)}", *zoos], lines)


def pruning(tables: Tables) -> str:
    """Return what pruning and learning gain over the same rule's own front, unpruned."""
    zoos = columns(tables)
    lines = []
    for method in core(tables):
        found = [tables.difference(zoo, method, Method(method.rule), "best mean", "ood") for zoo in zoos]
        if any(found) and method.variant in ("mean_abs 0.3", "mean_abs 0.5", "gates"):
            lines.append([title(method), *(str(each) if each else NOTHING for each in found)])
    return markdown_table(["minus the same rule unpruned", *zoos], lines)


def published(tables: Tables) -> str:
    """Return what pruning and what a smaller scale change at the published one, without intervals."""
    lines = []
    for zoo in tables.zoos:
        for rule in CORE:
            plain, pruned = (tables.published(zoo, Method(rule, each)) for each in ("unpruned", "mean_abs 0.5"))
            if plain and pruned:
                smaller = tables.chosen(zoo, Method(rule), "one standard error")
                changes = [mean(rows, on) - mean(plain, on) for rows in (pruned, smaller) for on in ("id", "ood")]
                scales = [f"{mean(rows, 'scale'):.3g}" for rows in (plain, smaller)]
                lines.append([zoo, TITLES[rule], *scales, *(f"{change:+.1f}" for change in changes)])
    headings = [f"{what}: {on}" for what in ("`mean_abs` 0.5", "chosen scale, unpruned") for on in ("ID", "OOD")]
    return markdown_table(["zoo", "rule", "published scale", "chosen scale", *headings], lines)


def details(tables: Tables) -> str:
    """Return every figure of fronts against task arithmetic's, pooled where there are several seeds."""
    zoo = POOLED if POOLED in columns(tables) else tables.zoos[0]
    figures = [(figure, f"ood/{group}") for figure in FIGURES for group in ("far", "near")]
    lines = []
    for method in core(tables):
        found = [tables.difference(zoo, method, OWN, figure, on) for figure, on in figures]
        if any(found):
            lines.append([title(method), *(str(each) if each else NOTHING for each in found)])
    return markdown_table([zoo, *(f"{figure}, {on.removeprefix('ood/')}" for figure, on in figures)], lines)


FIGURES = ("best mean", "ID at equal OOD", "OOD at equal ID", "hypervolume")


def tuned(tables: Tables, zoo: str) -> str:
    """Return the test figures of what is chosen on the validation samples."""
    groups = tables.groups(zoo)
    names = [group.removeprefix("ood/") for group in groups]
    names[0] = "ID"
    experts = tables.experts(zoo)
    lines = [["base", "", *(f"{float(tables.single(zoo, 'base')[group]):.1f}" for group in groups)]]
    lines.append(["each expert alone, mean", "", *(f"{mean(experts, group):.1f}" for group in groups)])
    for line in lines:
        line += [""] * (1 + len(groups))
    for method in core(tables):
        if tables.of(zoo, method):
            cells = [cell for choice in CHOICES for cell in _chosen(tables, zoo, method, choice, groups)]
            lines.append([title(method), *cells])
    headings = [cell for choice in CHOICES.values() for cell in (f"scale by {choice}", *names)]
    return markdown_table([f"{zoo}, accuracy in %", *headings], lines)


def _chosen(tables: Tables, zoo: str, method: Method, choice: str, groups: Iterable[str]) -> list[str]:
    rows = tables.chosen(zoo, method, choice)
    scales = sorted({float(row["scale"]) for row in rows})
    shown = f"{scales[0]:.3g}" + (f" … {scales[-1]:.3g}" if len(scales) > 1 else "")
    return [shown, *(f"{mean(rows, group):.1f}" for group in groups)]


def choosing(tables: Tables) -> str:
    """Return what the more cautious choice gains and loses against the best on validation samples."""
    lines = []
    for zoo in columns(tables):
        for method in core(tables):
            found = [claims.carefully(tables, zoo, method, on) for on in ("id", "ood", "ood/far", "ood/near")]
            if not method.variant.startswith("random") and any(each and (each.low or each.high) for each in found):
                lines.append([zoo, title(method), *(str(each) if each else NOTHING for each in found)])
    return markdown_table(["zoo", "`one_standard_error` minus `best`", "ID", "OOD", "far", "near"], lines)


def controls(tables: Tables) -> str:
    """Return random masks and reversed scores against the mask of `mean_abs`."""
    return _against_mask(tables, [(rule, f"{kind} {RATIOS[0]:g}") for rule in CORE for kind in ("random", "reversed")])


def masks(tables: Tables) -> str:
    """Return masks of learnt scores against those of `mean_abs`."""
    return _against_mask(tables, [(rule, f"gates' mask {ratio:g}") for rule in CORE for ratio in RATIOS])


def _against_mask(tables: Tables, shown: Iterable[tuple[str, str]]) -> str:
    zoos = columns(tables)
    lines = []
    for rule, variant in shown:
        ratio = variant.rpartition(" ")[2]
        for against in (Method(rule, f"mean_abs {ratio}"), Method(rule)):
            method = Method(rule, variant)
            found = [tables.difference(zoo, method, against, "best mean", "ood") for zoo in zoos]
            if any(found):
                name = f"`mean_abs` {ratio}" if against.variant != "unpruned" else "unpruned"
                lines.append([title(method), name, *(str(each) if each else NOTHING for each in found)])
    return markdown_table(["mask", "minus", *zoos], lines) if lines else ""


def rules(tables: Tables, zoo: str) -> str:
    """Return every rule at its published scale, at the chosen one, and pruned."""
    groups = tables.groups(zoo)
    names = "/".join(group.removeprefix("ood/").replace("id", "ID") for group in groups)
    lines = []
    for rule in sorted({method.rule for method in tables.methods[zoo] if method.variant == "unpruned"}):
        pruned = [Method(rule, f"mean_abs {ratio:g}") for ratio in sorted(RATIOS)]
        cells = [_figures(tables.published(zoo, Method(rule)), groups)]
        cells += [_figures(tables.chosen(zoo, method, "best"), groups) for method in (Method(rule), *pruned)]
        for method, against in ((Method(rule), OWN), *((method, Method(rule)) for method in pruned)):
            found = tables.difference(zoo, method, against, "best mean", "ood")
            cells.append(str(found) if found else NOTHING)
        lines.append([f"`{rule}`", *cells])
    tuned_at = [f"tuned{word}: {names}" for word in ("", *(f", pruned {ratio:g}" for ratio in sorted(RATIOS)))]
    gained = ["front minus task arithmetic's", *(f"pruned {ratio:g} minus unpruned" for ratio in sorted(RATIOS))]
    return markdown_table(["rule", f"published: {names}", *tuned_at, *gained], lines)


def _figures(rows: Sequence[dict[str, str]], groups: Iterable[str]) -> str:
    return " / ".join(f"{mean(rows, group):.1f}" for group in groups) if rows else NOTHING


def rules_elsewhere(tables: Tables) -> str:
    """Return what pruning gains each rule on the other zoos, as far as it was measured."""
    zoos = columns(tables)
    found = {}
    for rule in sorted({method.rule for own in tables.methods.values() for method in own} - {"adamerging"}):
        method = Method(rule, f"mean_abs {RATIOS[0]:g}")
        cells = [tables.difference(zoo, method, Method(rule), "best mean", "ood") for zoo in zoos]
        if sum(map(bool, cells)) > 1:
            found[rule] = [f"`{rule}`", *(str(each) if each else NOTHING for each in cells)]
    return markdown_table([f"pruned {RATIOS[0]:g} minus unpruned", *zoos], list(found.values())) + "\n"


def measured(tables: Tables) -> str:
    """Return how many fronts and candidates were measured of how many, stage by stage."""
    done = {(row["zoo"], row["rule"], row["variant"], row["draw"]) for row in tables.results}
    lines = []
    for stage in methods.STAGES:
        planned = [(f.rule, f.variant, "" if f.draw is None else str(f.draw)) for f in methods.fronts(stage)]
        cells = [sum((zoo, *front) in done for front in planned) for zoo in tables.zoos]
        lines.append([STAGES[stage], *(f"{cell} of {len(planned)}" for cell in cells)])
    counted = [sum(row["zoo"] == zoo for row in tables.results) for zoo in tables.zoos]
    lines.append(["models in all", *map(str, counted)])
    return markdown_table(["fronts", *tables.zoos], lines)


STAGES = {
    "core": "two rules, unpruned and pruned by `mean_abs`",
    "gates": f"LayerGates on their parts, {len(DRAWS)} draws of images",
    "reversed": "reversed score",
    "masks": "LayerGates' scores as a mask",
    "random": "random masks",
    "adamerging": "AdaMerging, learnt on the same images",
    "rules": "every other rule, unpruned",
    "rules-0.5": "every other rule, pruned by `mean_abs` 0.5",
    "rules-0.3": "every other rule, pruned by `mean_abs` 0.3",
}


if __name__ == "__main__":
    main()

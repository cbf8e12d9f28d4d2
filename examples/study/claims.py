"""What the page says in words of its figures; each sentence is chosen by the figures it tells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from methods import CORE, RATIOS, Method
from reading import Difference, Tables, mean

SEEDS = ("shipped", "seed1", "seed2")
"""Zoos that differ in the seed alone."""
POOLED = "three seeds"
OWN = Method("task_arithmetic")
TSV = Method("tsv_m")
GATES = Method("tsv_m", "gates")
HALF = Method("task_arithmetic", "mean_abs 0.5")
LESS = Method("task_arithmetic", "mean_abs 0.3")
TSV_HALF = Method("tsv_m", "mean_abs 0.5")
TSV_LESS = Method("tsv_m", "mean_abs 0.3")
NAMES = {"task_arithmetic": "task arithmetic", "tsv_m": "TSV-M"}
CAUTIOUS = "one standard error"


def columns(tables: Tables) -> list[str]:
    """Return the zoos that comparisons were made on, single and together."""
    return list(dict.fromkeys(row["zoo"] for row in tables.comparisons))


def verdict(found: Difference) -> str:
    """Return a difference in words."""
    if found.low > 0:
        return f"a gain, {found}"
    if found.high < 0:
        return f"a loss, {found}"
    return f"no difference that can be told from zero, {found}"


def short(tables: Tables) -> str:
    """Return the answers, a line each."""
    lines = [
        everywhere(tables, GATES, OWN, "`LayerGates` on TSV-M's parts, against task arithmetic's own front"),
        everywhere(tables, GATES, TSV, "`LayerGates` on TSV-M's parts, against TSV-M's own front"),
        everywhere(tables, HALF, OWN, "`mean_abs` 0.5 and task arithmetic, against task arithmetic's own front"),
        everywhere(tables, LESS, OWN, "`mean_abs` 0.3 and task arithmetic, against task arithmetic's own front"),
        everywhere(tables, TSV_HALF, TSV, "`mean_abs` 0.5 and TSV-M, against TSV-M's own front"),
        everywhere(tables, TSV_LESS, TSV, "`mean_abs` 0.3 and TSV-M, against TSV-M's own front"),
        at_published(tables),
        cautious(tables),
    ]
    return "\n".join(f"- {line}" for line in lines if line)


def everywhere(tables: Tables, method: Method, against: Method, words: str) -> str:
    """Return a sentence of the best mean on every zoo, seeds together first."""
    found = {zoo: tables.difference(zoo, method, against, "best mean", "ood") for zoo in columns(tables)}
    known = {zoo: each for zoo, each in found.items() if each is not None}
    if not known:
        return ""
    main = POOLED if POOLED in known else next(iter(known))
    others = [f"{zoo} {each}" for zoo, each in known.items() if zoo != main]
    return f"{words}: {verdict(known[main])} ({'; '.join([main, *others])})."


def at_published(tables: Tables) -> str:
    """Return what pruning seems to gain at a fixed scale, and what a smaller scale gains alone."""
    zoo = tables.zoos[0]
    pruned, plain = (tables.published(zoo, method) for method in (HALF, OWN))
    smaller = tables.chosen(zoo, OWN, "best")
    if not (pruned and plain and smaller):
        return ""
    fixed = [mean(pruned, on) - mean(plain, on) for on in ("id", "ood")]
    alone = [mean(smaller, on) - mean(plain, on) for on in ("id", "ood")]
    return (
        f"At the published scale, {mean(plain, 'scale'):g}, pruning half of the layers seems to gain {fixed[0]:.1f} "
        f"points ID and {fixed[1]:.1f} OOD on {zoo}. A smaller scale, {mean(smaller, 'scale'):.3g}, "
        f"gains {alone[0]:.1f} and {alone[1]:.1f} without pruning."
    )


def cautious(tables: Tables) -> str:
    """Return what the cautious choice does for the method that is recommended."""
    zoo = POOLED if POOLED in columns(tables) else tables.zoos[0]
    id_, ood = (carefully(tables, zoo, GATES, on) for on in ("id", "ood"))
    if id_ is None or ood is None:
        return ""
    return f"`one_standard_error` instead of `best`, for LayerGates on TSV-M: {id_} ID and {ood} OOD ({zoo})."


def carefully(tables: Tables, zoo: str, method: Method, on: str) -> Difference | None:
    """Return what the cautious choice changes against the bold one."""
    return tables.difference(zoo, method, TSV if method == OWN else OWN, f"{CAUTIOUS} minus best", on)


def choosing(tables: Tables) -> str:
    """Return over how many methods and zoos the cautious choice gains OOD and loses ID accuracy."""
    told = {"id": [0, 0, 0], "ood": [0, 0, 0]}
    for zoo in tables.zoos:
        for method in tables.methods[zoo]:
            for on, counts in told.items():
                found = carefully(tables, zoo, method, on)
                if found is not None and "random" not in method.variant:
                    counts[0] += 1
                    counts[1] += found.low > 0
                    counts[2] += found.high < 0
    (total, up, down), (_, ood_up, ood_down) = told["id"], told["ood"]
    if not total:
        return ""
    return (
        f"Over all {total} methods and zoos that were measured, also those of the other rules, it raises OOD accuracy "
        f"in {ood_up} and lowers it in {ood_down} with an interval that leaves zero out. It lowers ID accuracy in "
        f"{down} and raises it in {up}."
    )


def overshoot(tables: Tables) -> str:
    """Return at which part of the learnt coefficients test figures are best, and which one is chosen."""
    found = []
    for zoo in tables.zoos:
        draws: dict[str, list[dict[str, str]]] = {}
        for row in tables.of(zoo, GATES):
            draws.setdefault(row["draw"], []).append(row)
        for rows in draws.values():
            top = max(rows, key=lambda row: float(row["id"]) + float(row["ood"]))
            found.append([float(row["scale"]) for row in (top, _one(rows, "best"), _one(rows, CAUTIOUS))])
    if not found:
        return ""
    best, bold, careful = zip(*found, strict=True)
    return (
        f"LayerGates on TSV-M has its best mean on test samples at {min(best):.2g} to {max(best):.2g} of what was "
        f"learnt, {_mean(best):.2f} on average. `best` chooses {_mean(bold):.2f} on average, and `one_standard_error` "
        f"{_mean(careful):.2f}."
    )


def _one(rows: Sequence[dict[str, str]], choice: str) -> dict[str, str]:
    return next(row for row in rows if choice in row["chosen"].split(" and "))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def failed(tables: Tables) -> str:
    """Return what was hoped to help, and whether it does, a line each."""
    lines = [
        everywhere(tables, HALF, OWN, "`mean_abs` 0.5 before task arithmetic, against the unpruned front"),
        everywhere(tables, TSV_HALF, TSV, "`mean_abs` 0.5 before TSV-M, against the unpruned front"),
    ]
    for rule in CORE:
        for ratio in RATIOS:
            mask, usual = Method(rule, f"gates' mask {ratio:g}"), Method(rule, f"mean_abs {ratio:g}")
            words = f"LayerGates' scores as a mask of {ratio:g} before {NAMES[rule]}, against `mean_abs` {ratio:g}"
            lines.append(everywhere(tables, mask, usual, words))
            words = f"LayerGates' scores as a mask of {ratio:g} before {NAMES[rule]}, against the unpruned front"
            lines.append(everywhere(tables, mask, Method(rule), words))
    return "\n".join(f"- {line}" for line in lines if line)


def not_worth(tables: Tables) -> str:
    """Return for which rules pruning gains, loses, or does neither."""
    lines = []
    for zoo in tables.zoos:
        for ratio in RATIOS:
            kinds: dict[str, list[str]] = {kind: [] for kind in _KINDS}
            for method in tables.methods[zoo]:
                found = tables.difference(zoo, method, Method(method.rule), "best mean", "ood")
                if found is not None and method.variant == f"mean_abs {ratio:g}":
                    kind = "gains" if found.low > 0 else "loses" if found.high < 0 else "neither"
                    kinds[kind].append(f"`{method.rule}`")
            if any(kinds.values()):
                told = "; ".join(f"{_KINDS[kind]} {', '.join(names) or 'none'}" for kind, names in kinds.items())
                lines.append(f"- {zoo}, {ratio:g} pruned: {told}.")
    return "\n".join(lines)


_KINDS = {"gains": "it gains for", "loses": "it loses for", "neither": "no difference can be told for"}

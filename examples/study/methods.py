"""What is compared: fronts, each a way of merging at several scales.

The grid is the same for all, relative to the scale of a front: half octaves from a quarter of it to twice it, further
where the best validation ID average stands at an end, then quarter octaves around that best one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from lwptv_lightning import MergeRecipe
from lwptv_lightning.rules import RULES

IMAGES = 300
"""Test images of each set."""
VALIDATION = 200
"""Validation images of each ID set."""
UNLABELLED = 64
"""Images of each task to learn on, in each draw."""
BOOTSTRAPS = 1000

CORE = ("task_arithmetic", "tsv_m")
RATIOS = (0.5, 0.3)
DRAWS = (0, 1, 2)
RANDOM_MASKS = 20
COARSE = (-8, -6, -4, -2, 0, 2, 4)
"""Quarter octaves below and above a front's own scale."""
LIMITS = (-14, 10)
LEARNT = (-5, -4, -3, -2, -1, 0, 1)
AT_RANDOM = (-2, 0, 2)
OF_MASKS = (-4, -2, 0, 2, 4)
LEFT_OUT = {
    "adamerging": "without learning it is `task_arithmetic`, and learnt it is its own method",
    "weighted_average": "without weights it is `simple_average`",
    "nuslerp": "it merges two tasks, the others five",
}
"""Rules that are not measured as such, and why."""


@dataclass(frozen=True)
class Method:
    """A rule and what stands before it; several fronts where it is drawn: unlabelled images, random masks."""

    rule: str
    variant: str = "unpruned"

    @classmethod
    def of(cls, rule: str, variant: str) -> Method:
        """Return the method of a front, of whose random masks each has a number."""
        return cls(rule, variant.partition(", mask ")[0])

    def __str__(self) -> str:
        return f"{self.rule}, {self.variant}"


@dataclass(frozen=True, kw_only=True)
class Front:
    """A way of merging, at several scales.

    Attributes:
        rule: What merges.
        variant: What stands before it, such as ``"mean_abs 0.5"``.
        recipe: At the front's own scale; `None` where it is learnt first.
        learns: What is learnt on unlabelled images: ``"gates"`` or ``"adamerging"``; nothing by default.
        masks: The fraction of layers that learnt scores prune, where they are a mask.
        draw: Which unlabelled images.
        steps: The grid, in quarter octaves of the front's own scale.
        refined: Whether steps follow between and beyond those of ``steps``.
    """

    rule: str
    variant: str = "unpruned"
    recipe: MergeRecipe | None = None
    learns: str = ""
    masks: float = 0.0
    draw: int | None = None
    steps: tuple[int, ...] = COARSE
    refined: bool = True

    @property
    def method(self) -> Method:
        """What it is one of."""
        return Method.of(self.rule, self.variant)

    @property
    def name(self) -> str:
        """A name that no other front of a zoo has."""
        return f"{self.rule}, {self.variant}" + ("" if self.draw is None else f", draw {self.draw}")


def factor(step: int) -> float:
    """Return what a step multiplies a scale by, in four digits, so that recipes read well."""
    return float(f"{2 ** (step / 4):.4g}")


def next_steps(front: Front, validation: Mapping[int, float]) -> tuple[int, ...]:
    """Return the steps that are to follow, given the validation ID averages of those that were measured."""
    if missing := tuple(step for step in front.steps if step not in validation):
        return missing
    if not front.refined:
        return ()
    best = max((step for step in validation if step % 2 == 0), key=lambda step: validation[step])
    for wanted in ((best - 2, best + 2), (best - 3, best - 1, best + 1)):
        if missing := tuple(step for step in wanted if step not in validation and LIMITS[0] <= step <= LIMITS[1]):
            return missing
    return ()


def fronts(stage: str) -> Iterator[Front]:
    """Return the fronts of a stage, in the order of their worth."""
    yield from _STAGES[stage]()


def _core() -> Iterator[Front]:
    for ratio in (0.0, *RATIOS):
        yield from (_pruned(rule, ratio) for rule in CORE)


def _gates() -> Iterator[Front]:
    for draw in DRAWS:
        for rule in reversed(CORE):
            yield Front(rule=rule, variant="gates", learns="gates", draw=draw, steps=LEARNT, refined=False)


def _adamerging() -> Iterator[Front]:
    for draw in DRAWS:
        yield Front(rule="adamerging", variant="learnt", learns="adamerging", draw=draw, steps=LEARNT, refined=False)


def _masks() -> Iterator[Front]:
    for draw in DRAWS:
        for ratio in RATIOS:
            for rule in CORE:
                yield Front(
                    rule=rule,
                    variant=f"gates' mask {ratio:g}",
                    recipe=MergeRecipe(rule, ratio=ratio),
                    learns="gates",
                    masks=ratio,
                    draw=draw,
                    steps=OF_MASKS,
                    refined=False,
                )


def _reversed() -> Iterator[Front]:
    for rule in CORE:
        recipe = MergeRecipe(rule, score="-mean_abs", ratio=RATIOS[0])
        yield Front(rule=rule, variant=f"reversed {RATIOS[0]:g}", recipe=recipe)


def _random() -> Iterator[Front]:
    for rule in CORE:
        for seed in range(RANDOM_MASKS):
            recipe = MergeRecipe(rule, score="random", ratio=RATIOS[0], seed=seed)
            variant = f"random {RATIOS[0]:g}, mask {seed}"
            yield Front(rule=rule, variant=variant, recipe=recipe, steps=AT_RANDOM, refined=False)


def _rules(ratio: float) -> Iterator[Front]:
    """Return every other rule: those that people use most first, those that take long last."""
    first = ("ties", "dare", "simple_average", "consensus_ta", "iso_c", "regmean", "breadcrumbs", "della", "fisher")
    slow = ("iso_cts", "knots_ties", "wudi")
    others = [name for name in sorted(RULES) if name not in (*CORE, *LEFT_OUT, *first, *slow)]
    yield from (_pruned(rule, ratio) for rule in (*first, *others, *slow))


def _pruned(rule: str, ratio: float) -> Front:
    variant = f"mean_abs {ratio:g}" if ratio else "unpruned"
    return Front(rule=rule, variant=variant, recipe=MergeRecipe(rule, ratio=ratio))


_STAGES = {
    "core": _core,
    "gates": _gates,
    "adamerging": _adamerging,
    "masks": _masks,
    "reversed": _reversed,
    "random": _random,
    "rules": partial(_rules, 0.0),
    "rules-0.5": partial(_rules, 0.5),
    "rules-0.3": partial(_rules, 0.3),
}
STAGES = tuple(_STAGES)

"""Findings of any size for tests of reports, drawn from a seed: no model was evaluated."""

import random

import torch

from lwptv_lightning import MergeRecipe
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging import PruningPlan
from lwptv_lightning.report import Findings, PairedDifference, Point, ResultRow, ResultTable, SetAbout, Similarity
from lwptv_lightning.saliency import LayerTable, keep_most_salient

COEFFICIENTS = tuple(step / 10 for step in range(1, 11))


def plan_of(tasks, layers, ratio=0.5):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(len(tasks), len(layers), generator=generator).double()
    scores = LayerTable(tuple(tasks), tuple(layers), torch.ones(len(layers)), values)
    tensors = [f"{layer}.weight" for layer in layers]
    return PruningPlan(layers_from_names(tensors), scores, keep_most_salient(scores, ratio))


def findings_of(tasks=5, layers=40, groups=("near", "far"), name="{}", rules=1, seed=0, far=3):
    """Findings of so many tasks, layers and rules; ``name`` is what every name is put into."""
    draw = random.Random(seed)
    named = [name.format(f"task{number}") for number in range(tasks)]
    others = [f"ood/{group}/{name.format(f'set{number}')}" for group in groups for number in range(far)]
    others = others or [f"ood/{name.format(f'set{number}')}" for number in range(far)]

    def figures(id_average, ood_average):
        found = {f"id/{task}": min(1.0, max(0.0, draw.gauss(id_average, 0.05))) for task in named}
        found |= {loader: min(1.0, max(0.0, draw.gauss(ood_average, 0.05))) for loader in others}
        found["id/avg"] = sum(found[f"id/{task}"] for task in named) / tasks
        for over in ["ood", *(f"ood/{group}" for group in groups)]:
            own = [found[loader] for loader in others if loader.startswith(f"{over}/")]
            found[f"{over}/avg"] = sum(own) / len(own)
        return found

    points = [Point(name.format("base"), figures(0.35, 0.72), "base")]
    points += [Point(f"expert {task}", figures(0.45, 0.5), "expert", task) for task in named]
    rows = [ResultRow(point.name, point.figures) for point in points]
    for rule in range(rules):
        for family, gain in (("unpruned", 0.0), ("pruned", 0.02)):
            for c in COEFFICIENTS:
                model = name.format(f"rule{rule} x {c:g}{', mean_abs 0.5' if family == 'pruned' else ''}")
                found = figures(0.35 + 0.5 * c * (1.5 - c) + gain, 0.72 - 0.3 * c * c + gain)
                chosen = c == 0.4 and rule == 0
                points.append(Point(model, found, family, f"{c:g}", chosen))
                rows.append(ResultRow(model, found, 0.25, "best" if chosen else ""))
    for c in COEFFICIENTS[2:6:3]:
        points += [
            Point(f"random {c} {number}", figures(0.34 + 0.5 * c * (1.5 - c), 0.7 - 0.3 * c * c), "random", f"{c:g}")
            for number in range(10)
        ]
    blocks = [name.format(f"blocks.{number // 4}.part{number % 4}") for number in range(layers)]
    chosen = [point.name for point in points if point.chosen]
    return Findings(
        name.format("What merging gives"),
        ResultTable(rows),
        [f"Take {chosen[-1]}: it is better than {chosen[0]} on OOD data.", "With another draw of data it may differ."],
        [
            PairedDifference(chosen[-1], chosen[0], dict.fromkeys(("id", "ood"), (0.021, -0.004, 0.046))),
            PairedDifference(chosen[-1], rows[0].name, {"id": (0.2, 0.17, 0.23), "ood": (-0.04, -0.06, -0.02)}),
        ],
        sets=[SetAbout(f"id/{task}", 150, 10, name.format("Images of a task.")) for task in named]
        + [SetAbout(loader, 150, 10, name.format("Images of no task.")) for loader in others],
        points=points,
        curves={
            name.format(score): [(r / 10, draw.gauss(0.7, 0.02) - 0.3 * (r / 10) ** 4) for r in range(10)]
            for score in ("mean_abs", "sign_agreement", "random")
        },
        plan=plan_of(named, blocks),
        experts={task: draw.uniform(0.85, 0.95) for task in named},
        similarity=Similarity(named, [[1.0 if i == j else draw.gauss(0.1, 0.05) for j in named] for i in named]),
        changes={layer: {model: draw.random() + 0.5 for model in (*chosen, "TIES")} for layer in blocks},
        recipe=MergeRecipe("task_arithmetic", 0.4, ratio=0.5),
        versions={"lwptv_lightning": "1.0", "torch": "2.14"},
        fingerprints={"base": "0" * 64, **dict.fromkeys(named, "1" * 64)},
        seeds={"random masks": 0},
        notes=[name.format("These figures are made up.")],
    )

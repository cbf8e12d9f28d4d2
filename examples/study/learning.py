"""What is learnt on unlabelled images before it is measured: layer gates, and AdaMerging's coefficients."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods import UNLABELLED, Front
from outcomes import key_of
from subject import Subject

from lwptv_lightning import AdaMergingModule, CollectDataStatistics, LayerGates, MergeRecipe
from lwptv_lightning.files import write_whole
from lwptv_lightning.saliency import LayerTable
from lwptv_lightning.zoo.demo import quiet_lightning, quiet_trainer

BATCH = 24
STEPS = 90


@dataclass(frozen=True)
class Learnt:
    """What a front needs to know besides its own recipe.

    Attributes:
        recipe: That was learnt.
        scores: A `LayerTable` that was learnt.
        print: What tells the scores.
    """

    recipe: MergeRecipe | None = None
    scores: LayerTable | None = None
    print: str = ""


def learnt(subject: Subject, front: Front, folder: Path, *, learn: bool) -> Learnt | None:
    """Return what a front learns, from a file where it is there; `None` where it is not and must not be made."""
    if not front.learns:
        return Learnt()
    path = folder / f"{key_of(subject.print, front.learns, front.rule, _draw(front))}.json"
    scores = path.with_suffix(".scores.json")
    if not path.is_file():  # it is written last
        if not learn:
            return None
        with quiet_lightning():
            _LEARN[front.learns](subject, front, path)
    if not front.masks:
        return Learnt(recipe=MergeRecipe.from_json(path))
    text = scores.read_text()
    return Learnt(scores=LayerTable.from_json(text), print=hashlib.sha256(text.encode()).hexdigest())


def _gates(subject: Subject, front: Front, path: Path) -> None:
    gates = LayerGates(subject.module, rule=front.rule, seed=_draw(front))
    quiet_trainer(max_steps=STEPS).fit(gates, subject.in_order(_draw(front)))
    write_whole(path.with_suffix(".scores.json"), gates.scores().to_json())
    write_whole(path, gates.recipe().to_json())


def _adamerging(subject: Subject, front: Front, path: Path) -> None:
    learner = AdaMergingModule(subject.module, lr=1e-2)
    quiet_trainer(max_steps=STEPS, max_epochs=-1).fit(learner, subject.shuffled(_draw(front), BATCH))
    write_whole(path, learner.recipe().to_json())


def _draw(front: Front) -> int:
    if front.draw is None:
        raise ValueError(f"front {front.name!r} learns, and has no draw of unlabelled images.")
    return front.draw


def data_statistics(subject: Subject, kind: str) -> Any:
    """Collect what Fisher merging and RegMean need, on the first draw of unlabelled images."""
    collector = CollectDataStatistics(kind, samples=UNLABELLED)
    with quiet_lightning():
        quiet_trainer(callbacks=[collector]).validate(subject.module, subject.in_order(0), verbose=False)
    return collector.statistics


_LEARN = {"gates": _gates, "adamerging": _adamerging}

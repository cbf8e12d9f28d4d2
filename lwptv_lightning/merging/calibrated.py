"""What a recipe's calibration does to what a rule made of a matrix: a rule around the rule, for the tensors treated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.functional import Triplets, sum_tasks
from lwptv_lightning.merging.ties import by_first_names
from lwptv_lightning.modifiers import Calibration
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.rules import MergeContext, MergeRule


@dataclass(frozen=True, kw_only=True)
class Calibrated(MergeRule[Any]):
    """Merge a matrix by a rule, multiply it with a scale, and calibrate that.

    It is in no registry: a plan applies it to the tensors that a calibration treats, and the rule itself to others. The
    calibration's own scale is none of it, but of the coefficient that comes afterwards.

    Args:
        rule: Merges the task vectors.
        calibration: What acts on its result.
        scale: The recipe's, which comes before.
    """

    paper = ""
    published_scale = 1.0

    rule: MergeRule[Any]
    calibration: Calibration
    scale: float

    @property
    def name(self) -> str:  # type: ignore[override]
        """What it is called in messages."""
        return f"{self.rule.name} and {self.calibration.name}"

    def surveys_model(self) -> bool:  # type: ignore[override]
        """Tell whether the rule looks at the whole model before it combines a single tensor."""
        return self.rule.surveys_model()

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task's part, multiplied from the left with what calibrates the sum of all, ``(T, *shape)``."""
        parts = self.rule.parts(tau.clone(), context)
        made = torch.empty_like(tau)
        for rows, triplets, gains in self._blocks(sum_tasks(parts), tau, context):
            for part, own in zip(parts.flatten(2)[:, rows], made.flatten(2)[:, rows], strict=True):
                own.copy_(triplets.left * gains @ (triplets.left.mT @ part.double()))
        return made

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return the calibrated matrix, ``(T, *shape) -> (*shape)``."""
        merged = self.rule.combine(tau.clone(), context)
        made = [
            triplets.left * (gains * triplets.values) @ triplets.right
            for _, triplets, gains in self._blocks(merged, tau, context)
        ]
        return torch.cat(made).to(tau.dtype).reshape(tau.shape[1:])

    def _blocks(self, merged: Tensor, tau: Tensor, context: MergeContext) -> Sequence[tuple[slice, Triplets, Tensor]]:
        """Return of each block of rows: which, the triplets of what the rule made, and what each is multiplied with."""
        matrix, tasks, found = merged.flatten(1), tau.flatten(2), []
        blocks = self.calibration.row_blocks(context.name, merged.shape)
        size = len(matrix) // blocks
        for rows in (slice(block * size, (block + 1) * size) for block in range(blocks)):
            # Of what the rule made without the scale, which is the same for all scales and calibrations.
            triplets = context.decompose(matrix[rows])
            left, values, right = triplets
            scaled = Triplets(left, values * abs(self.scale), right if self.scale >= 0 else -right)
            found.append((rows, triplets, self.scale * self.calibration.gains(scaled, tasks[:, rows])))
        return found


def plain(rule: MergeRule[Any]) -> MergeRule[Any]:
    """Return a rule without what calibrates its result."""
    return rule.rule if isinstance(rule, Calibrated) else rule


def rules_of(
    recipe: MergeRecipe, rule: MergeRule[Any], shapes: Mapping[str, tuple[int, ...]], tied: Mapping[str, str]
) -> dict[str, MergeRule[Any]]:
    """Return the rule that makes each tensor: a recipe's own, or the same with the recipe's calibration.

    Args:
        recipe: The recipe.
        rule: Its own rule, as it merges.
        shapes: Tensor name to shape.
        tied: Further name of a tied weight to its first one; globs of the calibration mean any.

    Raises:
        ValueError: The calibration cannot divide a matrix as it says.
    """
    if recipe.calibrate is None:
        return dict.fromkeys(shapes, rule)
    calibration = by_first_names(recipe.calibrate, tied)
    around = Calibrated(rule=rule, calibration=calibration, scale=recipe.effective_scale)
    treated = {name for name, shape in shapes.items() if calibration.treats(name, shape)}
    for name in treated:
        calibration.row_blocks(name, shapes[name])
    return {name: around if name in treated else rule for name in shapes}

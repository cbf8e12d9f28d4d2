"""What a chosen recipe is measured against: the same rule without pruning and with random masks, tuned as well."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from torch import Tensor

from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.search.choice import best, one_standard_error
from lwptv_lightning.search.compare import SweepResult, weights_over
from lwptv_lightning.search.space import name_of, unpruned

CHOICES = {"best": best, "one_standard_error": one_standard_error}
"""How a candidate is chosen on the validation samples of the ID sets."""
TUNED_MASKS = 5
"""Random masks by whose mean their scale is chosen."""


@dataclass(frozen=True)
class Controls:
    """Recipes that tell what the pruning of a chosen one is worth.

    Attributes:
        plain: The rule without pruning, by name, at each scale.
        masks: Scale to the rule with random masks of the same ratio, by name, one for each seed; none where the chosen
            recipe prunes no share of the layers by a score.
    """

    plain: Mapping[str, MergeRecipe]
    masks: Mapping[float, Mapping[str, MergeRecipe]] = field(default_factory=dict)

    @classmethod
    def of(cls, chosen: MergeRecipe, scales: Sequence[float], masks: int) -> Controls:
        """Return the controls of a recipe.

        Args:
            chosen: The recipe.
            scales: Coefficients to choose from.
            masks: How many random masks, with the seeds 0, 1, ...
        """
        usual = unpruned(chosen)
        plain = {name_of(own): own for scale in scales if (own := usual.replace(scale=scale))}
        if not (chosen.ratio and masks) or chosen.score.removeprefix("-") == "random":
            return cls(plain)
        random = {
            scale: {
                f"{name_of(own)}, mask {seed}": own
                for seed in range(masks)
                if (own := chosen.replace(scale=scale, score="random", seed=seed))
            }
            for scale in scales
        }
        return cls(plain, random)

    def to_tune(self) -> dict[str, MergeRecipe]:
        """Return what their scales are chosen by, by name."""
        found = dict(self.plain)
        for own in self.masks.values():
            found |= dict(list(own.items())[:TUNED_MASKS])
        return found

    def masks_at(self, found: SweepResult, choice: str) -> dict[str, MergeRecipe]:
        """Return the random masks at the scale that is tuned for them on validation samples."""
        if not self.masks:
            return {}
        groups = {scale: list(own)[:TUNED_MASKS] for scale, own in self.masks.items()}
        return dict(self.masks[chosen_mean(found, groups, choice)])


def chosen_mean(found: SweepResult, groups: Mapping[float, Sequence[str]], choice: str) -> float:
    """Return which group of candidates has the best mean, or is nearest to the base within one standard error of it.

    As `best` and `one_standard_error` choose among single candidates; a sample's outcome is the mean over the group.

    Example:
        >>> import torch
        >>> right = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [True, False, True]])
        >>> result = SweepResult(tuple("abcd"), {"id/x": right}, {}, dict(zip("abcd", (1.0, 1.0, 2.0, 2.0))))
        >>> chosen_mean(result, {0.5: ["a", "b"], 1.0: ["c", "d"]}, "best")
        1.0
    """
    weights = weights_over(found.outcomes, "id")
    means = {key: found.mean_correct(names) for key, names in groups.items()}
    averages = {key: _weighted(own, weights) for key, own in means.items()}
    changes = {
        key: sum(found.changes.get(name, math.inf) for name in names) / len(names) for key, names in groups.items()
    }
    top = min(averages, key=lambda key: (-round(averages[key], 12), changes[key]))
    if choice == "best":
        return top
    near = []
    for key, own in means.items():
        lost = {loader: means[top][loader] - values for loader, values in own.items()}
        variance = sum(
            float(weight) ** 2 * float(lost[name].var()) / len(lost[name]) for name, weight in weights.items()
        )
        if _weighted(lost, weights) <= math.sqrt(variance) + 1e-12:
            near.append(key)
    return min(near, key=lambda key: (changes[key], -averages[key]))


def _weighted(outcomes: Mapping[str, Tensor], weights: Mapping[str, Fraction]) -> float:
    return sum(float(weight) * float(outcomes[loader].mean()) for loader, weight in weights.items())

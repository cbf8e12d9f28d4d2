import math

import pytest
import torch

from lwptv_lightning import MergeRecipe
from lwptv_lightning.search import SweepResult, best, one_standard_error
from lwptv_lightning.search.controls import CHOICES, TUNED_MASKS, Controls, chosen_mean


def test_the_controls_of_a_recipe_that_prunes_differ_in_one_thing():
    chosen = MergeRecipe({"name": "ties", "density": 0.1}, 0.5, score="l2", ratio=0.3, granularity="block")
    controls = Controls.of(chosen, [0.5, 1.0], 20)
    assert [recipe.scale for recipe in controls.plain.values()] == [0.5, 1.0]
    assert {recipe.replace(scale=0.5) for recipe in controls.plain.values()} == {
        chosen.replace(score="mean_abs", ratio=0)
    }
    assert {scale: len(own) for scale, own in controls.masks.items()} == {0.5: 20, 1.0: 20}
    for scale, own in controls.masks.items():
        assert [recipe.seed for recipe in own.values()] == list(range(20))
        assert all(recipe == chosen.replace(score="random", seed=recipe.seed, scale=scale) for recipe in own.values())
    assert len(controls.to_tune()) == 2 + 2 * TUNED_MASKS
    assert len({*controls.plain, *(name for own in controls.masks.values() for name in own)}) == 42


@pytest.mark.parametrize(
    "chosen",
    [
        MergeRecipe("ties"),
        MergeRecipe("ties", score="random", ratio=0.5),
        MergeRecipe("tsv_m", prune_on="parts", coefficients={"a": {"*": 0.5}}),
    ],
)
def test_what_has_no_mask_by_a_score_has_no_random_masks(chosen):
    controls = Controls.of(chosen, [0.5, 1.0], 20)
    assert controls.masks == {}
    assert all(recipe.coefficients is None and not recipe.prunes_layers for recipe in controls.plain.values())
    assert controls.masks_at(SweepResult((), {}, {}), "best") == {}


@pytest.mark.parametrize("seed", range(20))
def test_of_groups_of_one_the_choices_are_those_among_candidates(seed):
    generator = torch.Generator().manual_seed(seed)
    outcomes = {
        f"id/{number}": torch.rand(5, size, generator=generator) < 0.5 + 0.05 * torch.arange(5)[:, None]
        for number, size in enumerate((30, 17))
    }
    result = SweepResult(tuple("abcde"), outcomes, {}, dict(zip("abcde", range(5), strict=True)))
    groups = {float(place): [name] for place, name in enumerate("abcde")}
    for choice, choose in {"best": best, "one_standard_error": one_standard_error}.items():
        assert "abcde"[int(chosen_mean(result, groups, choice))] == choose(result)
    assert list(CHOICES.values()) == [best, one_standard_error]


def test_a_group_counts_by_its_mean():
    right = torch.tensor([[True] * 4, [False] * 4, [True, True, True, False], [True, True, False, True]])
    result = SweepResult(tuple("abcd"), {"id/x": right}, {}, {"a": 0.1, "b": 0.1, "c": 2.0, "d": 2.0})
    assert chosen_mean(result, {0.5: ["a", "b"], 1.0: ["c", "d"]}, "best") == 1.0
    # 0.25 is lost, and the paired error is sqrt(0.0833 / 4): 0.14.
    assert math.sqrt(float(torch.tensor([0.5, 0.5, 0.0, 0.0]).var()) / 4) < 0.25
    assert chosen_mean(result, {0.5: ["a", "b"], 1.0: ["c", "d"]}, "one_standard_error") == 1.0
    nearer = {**result.changes, "c": 0.01, "d": 0.01}
    assert chosen_mean(SweepResult(result.names, result.outcomes, {}, nearer), {0.5: ["a"], 1.0: ["c"]}, "best") == 0.5

import pytest
import torch

from lwptv_lightning import MergeRecipe
from lwptv_lightning.search import SweepResult, TuneResult
from lwptv_lightning.search.space import REFERENCE

CHOSEN, PLAIN = "ties x 1, mean_abs 0.5", "ties x 0.5"
MASKS = tuple(f"ties x 1, random 0.5, mask {seed}" for seed in range(3))
RECIPES = {
    REFERENCE: MergeRecipe("task_arithmetic", 0.3),
    PLAIN: MergeRecipe("ties", 0.5),
    CHOSEN: MergeRecipe("ties", 1.0, ratio=0.5),
    **{name: MergeRecipe("ties", 1.0, score="random", ratio=0.5, seed=seed) for seed, name in enumerate(MASKS)},
}


def swept(names, sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    outcomes = {loader: torch.rand(len(names), size, generator=generator) < 0.6 for loader, size in sizes.items()}
    return SweepResult(tuple(names), outcomes, dict.fromkeys(names, 0.5), dict.fromkeys(names, 1.0))


def result(sizes=None, **changes):
    sizes = {"id/a": 30, "id/b": 20, "ood/near/c": 25, "ood/far/d": 15} if sizes is None else sizes
    names = ("base", "expert a", "expert b", *RECIPES)
    usual = {
        "recipes": RECIPES,
        "candidates": tuple(RECIPES)[:3],
        "chosen": {"best": PLAIN, "one_standard_error": CHOSEN},
        "choice": "one_standard_error",
        "validation": swept(tuple(RECIPES)[:3], {"id/a": 12}),
        "test": swept(names, sizes),
        "experts": {"a": "expert a", "b": "expert b"},
        "unpruned": PLAIN,
        "masks": MASKS,
        "curves": {},
        "searched": "all",
    }
    return TuneResult(**(usual | changes))


def test_the_recipe_is_the_one_that_the_choice_names():
    assert result().recipe == RECIPES[CHOSEN]
    assert result(choice="best").recipe == RECIPES[PLAIN]


def test_rows_are_what_is_compared_each_once():
    table = result().table
    assert [row.name for row in table.rows] == [
        "base",
        "expert a",
        "expert b",
        PLAIN,
        CHOSEN,
        REFERENCE,
        "ties x 1, random 0.5, mean of 3 masks",
    ]
    notes = {row.name: row.note for row in table.rows}
    assert notes[PLAIN] == "chosen by best, tuned without pruning"
    assert notes[CHOSEN] == "chosen by one_standard_error"
    assert notes[REFERENCE] == "not tuned"
    masks = table.rows[-1]
    draws = [result().test.figures(name)["id/avg"] for name in MASKS]
    assert masks.figures["id/avg"] == pytest.approx(sum(draws) / 3)
    assert masks.note.startswith(f"ID {100 * min(draws):.1f} to {100 * max(draws):.1f}, OOD ")


def test_differences_are_paired_over_id_groups_and_all_ood_sets():
    found = result()
    assert found.over == ("id", "ood/near", "ood/far", "ood")
    assert list(found.differences) == [
        "base",
        "expert a",
        "expert b",
        "mean of the experts",
        REFERENCE,
        PLAIN,
        "ties x 1, random 0.5, mean of 3 masks",
    ]
    assert found.differences["base"]["ood/near"] == found.test.difference(CHOSEN, "base", "ood/near")
    means = [found.test.difference(CHOSEN, name, "id").value for name in MASKS]
    assert found.differences[found.masks_name]["id"].value == pytest.approx(sum(means) / 3)


def test_what_is_not_there_is_left_out():
    found = result({"id/a": 30}, masks=(), unpruned=REFERENCE, choice="best", chosen={"best": REFERENCE})
    assert found.over == ("id",)
    assert REFERENCE not in found.differences
    assert found.masks_name == ""
    assert "no OOD set" in found.recommendation[1]
    assert found.recommendation[0].startswith("Stay with")


def test_the_sentences_come_from_these_figures():
    found = result()
    first, second = found.recommendation
    assert f"{100 * found.test.figures(CHOSEN)['id/avg']:.1f} % ID" in first
    assert str(found.differences[REFERENCE]["id"]) in first
    assert str(found.differences[PLAIN]["ood"]) in second
    assert str(found.differences[found.masks_name]["id"]) in second
    assert "12 of the smallest validation and 15 of the smallest test set" in second

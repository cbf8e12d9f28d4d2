"""What README and its companions claim stands in a file of results, which says how it was measured."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml

from lwptv_lightning import zoo

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("tuned_on_zoo", ROOT / "benchmarks" / "tuned_on_zoo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found():
    return json.loads((ROOT / "docs" / "tuned.json").read_text())


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text()


def words(text):
    return " ".join(text.split())


def test_the_tables_are_those_of_the_results(script, found, readme):
    for line in script.summary(found).splitlines():
        assert line in readme.splitlines()
    assert (ROOT / "docs" / "tuned.md").read_text() == script.page(found)


def test_the_text_says_which_gain_is_against_which_scale(script, found, readme):
    text = words(readme)
    for said, row in found["differences"].items():
        for domain in ("id", "ood"):
            assert script.spelled(row[domain]) in text, said
    unpruned, pruned = (f"{found['best'][kind]:g}" for kind in ("unpruned", "pruned"))
    assert f"its own best scale, {unpruned}" in text
    assert f"({pruned})" in text
    for claim in ("450 images a set", "steps of 0.025", "95 %", "benchmarks/tuned_on_zoo.py", "docs/tuned.md"):
        assert claim in text, claim
    assert "beats the unpruned model at its best scale" not in text


def test_the_results_say_how_they_were_measured(script, found):
    page = words((ROOT / "docs" / "tuned.md").read_text())
    for claim in (
        found["command"],
        "450 images in each (300 of ood/digits)",
        "steps of 0.025",
        "95 % paired bootstraps",
    ):
        assert claim in page, claim
    assert found["images"]["validation"] == 450
    assert set(found["images"]["test"].values()) == {450, 300}
    assert len(found["images"]["test"]) == 10
    assert found["grid"]["step"] <= 0.025
    assert found["command"] == script.COMMAND


def test_both_are_tuned_alike_on_validation_data_within_the_grid(script, found):
    for kind in script.KINDS:
        curve = {scale: found["validation"][script.at(kind, scale)] for scale in script.GRID}
        best = found["best"][kind]
        assert curve[best] == max(curve.values())
        assert min(curve) < best < max(curve), "the best scale is inside the grid"
    tuned = found["differences"]["each at its best scale"]
    for kind in script.KINDS:
        assert tuned[kind] == script.at(kind, found["best"][kind])


def test_differences_are_those_of_the_figures_and_lie_in_their_intervals(found):
    for row in found["differences"].values():
        for domain in ("id", "ood"):
            value, low, high = row[domain]
            figures = found["test"]
            assert value == pytest.approx(figures[row["pruned"]][domain] - figures[row["unpruned"]][domain], abs=1e-6)
            assert low < value < high


def test_pruning_makes_the_choice_of_the_scale_less_delicate(script, found):
    """Of the scales that lose a point of ID accuracy at most there are more, and OOD accuracy falls less over them."""
    near = {}
    for kind in script.KINDS:
        rows = {scale: found["test"][script.at(kind, scale)] for scale in script.GRID}
        best = max(row["id"] for row in rows.values())
        near[kind] = [row["ood"] for row in rows.values() if row["id"] >= best - 1]
    assert len(near["pruned"]) > len(near["unpruned"])
    falls = {kind: max(accuracies) - min(accuracies) for kind, accuracies in near.items()}
    assert falls["pruned"] < falls["unpruned"]


def test_the_random_masks_are_told_as_they_are(found, readme):
    pruned, random = found["test"]["task_arithmetic pruned"], found["test"]["random masks"]
    gains = (f"{pruned[domain] - random[domain]:.1f}" for domain in ("id", "ood"))
    said = "by {} points ID and {} OOD. None of them beats it ID, and the best of them does OOD."
    assert said.format(*gains) in words(readme)
    assert random["id largest"] <= pruned["id"]
    assert random["ood largest"] > pruned["ood"]


def test_what_chooses_is_no_part_of_what_is_reported():
    for name in zoo.ID_SETS:
        drawn = [zoo.dataset(name, split, 8).images.flatten(1) for split in ("validation", "test")]
        assert torch.cdist(*drawn).min() > 0.1


def test_no_zero_has_a_minus(script):
    assert script.spelled([-0.04, -1.04, 0.96]) == "+0.0 [-1.0, +1.0]"


def test_the_citation_names_the_paper_and_its_authors():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = cited["references"]
    assert paper["title"] == "Merging Smarter, Generalizing Better: Enhancing Model Merging on OOD Data"
    assert paper["url"] == "https://arxiv.org/abs/2506.09093"
    assert [author["family-names"] for author in paper["authors"]] == [
        "Zhang",
        "Li",
        "Shi",
        "Rong",
        "Zhao",
        "Wang",
        "Guo",
        "Wang",
    ]

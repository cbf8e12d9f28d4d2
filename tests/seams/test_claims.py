"""What README and docs/study.md claim stands in the study's tables, which say how it was measured."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from _helpers.example_scripts import example_scripts

from lwptv_lightning import zoo

ROOT = Path(__file__).parents[2]
MOST_BYTES = 150_000
"""Of a picture."""


@pytest.fixture(scope="module")
def study():
    with example_scripts("study") as script:
        yield script


@pytest.fixture(scope="module")
def tables(study):
    return study("reading").Tables.read()


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text()


def words(text):
    return " ".join(text.split())


def test_the_page_is_that_of_the_tables(study, tables):
    page = (ROOT / "docs" / "study.md").read_text()
    assert page == study("page").page(tables)
    for name in re.findall(r"\(([a-z_]+[.]png)\)", page):
        assert 0 < (ROOT / "docs" / name).stat().st_size < MOST_BYTES


def test_the_tables_of_readme_are_those_of_the_study(study, tables, readme):
    for table in (study("summary").table, study("summary").fronts):
        assert table(tables).strip() in readme


def test_the_text_of_readme_is_that_of_the_tables(study, tables, readme):
    sentences = study("summary").sentences(tables)
    assert len(sentences) == 2
    for sentence in sentences:
        assert sentence in words(readme)
    for claim in ("300 images a set", "95 %", "docs/study.md", "examples/study/run.py"):
        assert claim in words(readme), claim


def test_each_front_has_its_choices_within_its_grid(tables):
    fronts = {}
    for row in tables.results:
        if row["variant"]:
            fronts.setdefault((row["zoo"], row["rule"], row["variant"], row["draw"]), []).append(row)
    for front, rows in fronts.items():
        (best,) = [row for row in rows if "best" in row["chosen"].split(" and ")]
        (careful,) = [row for row in rows if "one standard error" in row["chosen"].split(" and ")]
        assert float(best["validation id"]) == max(float(row["validation id"]) for row in rows), front
        assert float(careful["change"]) <= float(best["change"]), front
        assert len({row["step"] for row in rows}) == len(rows) >= 3, front


def test_differences_lie_in_their_intervals(tables):
    for row in tables.comparisons:
        value, low, high = (float(row[end]) for end in ("value", "low", "high"))
        if value == value:
            assert low - 0.01 <= value <= high + 0.01 or row["figure"] in ("best mean", "hypervolume"), row
    assert {row["zoo"] for row in tables.results} <= {row["zoo"] for row in tables.comparisons}


def test_learnt_pruning_moves_the_front_of_the_shipped_zoo(study, tables):
    claims = study("claims")
    assert {row["draw"] for row in tables.of("shipped", claims.GATES)} == {"0", "1", "2"}
    found = tables.difference("shipped", claims.GATES, claims.OWN, "best mean", "ood")
    assert found.value >= 1.5
    assert found.low > 0


def test_what_chooses_is_no_part_of_what_is_reported():
    for name in zoo.ID_SETS:
        drawn = [zoo.dataset(name, split, 8).images.flatten(1) for split in ("validation", "test")]
        assert torch.cdist(*drawn).min() > 0.1


def test_no_zero_has_a_minus(study):
    assert str(study("reading").Difference(-0.04, -1.04, 0.96, 1)) == "+0.0 [-1.0, +1.0]"


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

"""Read again by the hub's own library."""

import math

import pytest
from huggingface_hub import ModelCard

from lwptv_lightning.merging import TAGS, BaseCard
from lwptv_lightning.merging.card_metadata import card_metadata, heading


def read(figures, base=None, relation="merge"):
    text = card_metadata("Mine", None, relation, base or BaseCard(), (), figures, "accuracy")
    return ModelCard(f"---\n{text}\n---\n").data


def test_sets_whose_names_are_alike_stay_apart():
    names = ["id/a b", "id/a-b", "id/A_B", "id/中", "id/é", "id/", "/"]
    figures = {name: index / 10 for index, name in enumerate(names)}
    assert [each.metric_value for each in read(figures).eval_results] == list(figures.values())


def test_what_is_not_finite_is_no_result():
    assert [each.metric_value for each in read({"id/a": math.nan, "id/b": 0.25, "id/c": -math.inf}).eval_results] == [
        0.25
    ]
    assert read({"id/a": math.nan}).eval_results is None


def test_the_kind_of_task_is_that_of_the_base():
    (result,) = read({"id/a": 0.5}, BaseCard(pipeline_tag="image-classification")).eval_results
    assert result.task_type == "image-classification"
    (result,) = read({"id/a": 0.5}).eval_results
    assert result.task_type == "other"


@pytest.mark.parametrize("relation", ["merge", "adapter"])
def test_the_relation_to_the_base_is_said(relation):
    data = read({}, BaseCard(name="owner/base"), relation).to_dict()
    assert data == {"base_model": ["owner/base"], "base_model_relation": relation, "tags": list(TAGS)}


@pytest.mark.parametrize(
    ("loader", "words"), [("id/svhn", "id svhn"), ("ood/avg", "OOD avg"), ("id/avg/f1", "ID avg/f1"), ("x", "x ")]
)
def test_headings(loader, words):
    assert heading(loader) == words

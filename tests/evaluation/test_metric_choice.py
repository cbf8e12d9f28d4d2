import pytest
import torch
from torch import nn
from torchmetrics import F1Score, MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MulticlassF1Score, MultilabelAccuracy
from torchmetrics.segmentation import MeanIoU
from torchmetrics.wrappers import ClasswiseWrapper, MetricTracker

from lwptv_lightning.evaluation.metric_choice import (
    MetricChoice,
    is_of_classes,
    is_of_other_than_classes,
    kind_of,
    takes_any_output,
)
from lwptv_lightning.registry import UnknownNameError

HEADS = {"id/a": nn.Linear(4, 2), "id/b": nn.Linear(4, 5), "ood/b": nn.Linear(4, 5)}


def test_one_for_all_and_the_default():
    mse = MeanSquaredError()
    assert set(MetricChoice(mse).of(HEADS).values()) == {mse}
    default = MetricChoice().of(HEADS)["id/a"]
    assert (type(default), default.average) == (MulticlassAccuracy, "micro")
    assert MetricChoice().described() is None


def test_one_for_each_by_the_loaders_name_which_goes_before_its_sets():
    named = {"id/a": F1Score("multiclass", num_classes=2), "b": MulticlassF1Score(5), "ood/b": MeanSquaredError()}
    found = MetricChoice(named).of(HEADS)
    assert found == {"id/a": named["id/a"], "id/b": named["b"], "ood/b": named["ood/b"]}
    assert MetricChoice(named).described().startswith("{'id/a': MulticlassF1Score(average=micro, top_k=1")


def test_a_function_of_the_head():
    found = MetricChoice(lambda head: MulticlassF1Score(head.out_features)).of(HEADS)
    assert [metric.num_classes for metric in found.values()] == [2, 5, 5]
    with pytest.raises(TypeError, match="what metric=... makes for loader 'id/a' must be a torchmetrics .*, not 0.5"):
        MetricChoice(lambda head: 0.5).of(HEADS)
    for make in (lambda head, loader: MeanSquaredError(), lambda head: MulticlassF1Score(head.classes)):
        with pytest.raises(TypeError, match=r"failed for loader 'id/a'.*one argument.*here a Linear.*Error: "):
            MetricChoice(make).of(HEADS)


def test_a_loader_without_a_metric_is_refused_with_the_nearest_name():
    choice = MetricChoice({"id/a": MeanSquaredError(), "id/bb": MeanSquaredError()})
    with pytest.raises(ValueError, match=r"none for loader 'id/b'\. Did you mean 'id/bb'\? It has id/a, id/bb"):
        choice.of({name: HEADS[name] for name in ("id/a", "id/b")})


def test_a_metric_without_a_loader_is_refused_unless_only_some_loaders_are_there():
    choice = MetricChoice({"id/a": MeanSquaredError(), "id/b": MeanSquaredError(), "ood/bb": MeanSquaredError()})
    some = {name: HEADS[name] for name in ("id/a", "id/b")}
    with pytest.raises(UnknownNameError, match=r"loader in metric: 'ood/bb'\. Did you mean 'id/b'\? Known: id/a, id/b"):
        choice.of(some)
    assert set(choice.of(some, partly=True)) == set(some)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (MetricCollection([]), ValueError, "metric is an empty MetricCollection"),
        ({"a": MetricCollection([])}, ValueError, "metric of 'a' is an empty MetricCollection"),
        ({1: MeanSquaredError()}, TypeError, "the loaders in metric must be names such as 'id/svhn'"),
        ({}, ValueError, "empty mapping: expected a metric for each loader"),
        ({"id/a": 0.5}, TypeError, "metric of 'id/a' must be a torchmetrics Metric or MetricCollection, not 0.5"),
        (MulticlassAccuracy, TypeError, "metric must be a torchmetrics Metric or MetricCollection, not <class"),
        (MetricTracker(MeanSquaredError()), TypeError, "metric must be a torchmetrics Metric"),
        ("accuracy", TypeError, "metric must be .*, not 'accuracy'"),
    ],
)
def test_what_is_no_metric(given, error, message):
    with pytest.raises(error, match=message):
        MetricChoice(given)


def test_another_number_of_classes_than_the_heads_is_refused_by_the_loaders_name():
    collection = MetricCollection([MulticlassF1Score(5), MulticlassAccuracy(5)])
    for metric in (MulticlassF1Score(5), collection, {"a": collection, "b": collection}):
        with pytest.raises(ValueError, match="loader 'id/a': its head tells 2 classes apart, and Multiclass.*=5"):
            MetricChoice(metric).of(HEADS)
    MetricChoice(MulticlassF1Score(5)).of(dict.fromkeys(HEADS, nn.Identity()))  # unknown before the first batch


class Own(Metric):
    def update(self, logits, targets):
        pass

    def compute(self):
        return torch.tensor(0.0)


@pytest.mark.parametrize(
    ("metric", "classes", "other", "any_output"),
    [
        (MulticlassF1Score(3), True, False, False),
        (MetricCollection([MulticlassF1Score(3), MulticlassAccuracy(3)]), True, False, False),
        (ClasswiseWrapper(MulticlassF1Score(3, average=None)), False, False, False),
        (MulticlassF1Score(3) + 1.0, False, False, False),
        (MultilabelAccuracy(3), False, True, False),
        (MetricCollection([MulticlassF1Score(3), MeanSquaredError()]), False, True, False),
        (MeanIoU(3), False, False, False),
        (Own(), False, False, True),
    ],
)
def test_what_metrics_are_of(metric, classes, other, any_output):
    assert (is_of_classes(metric), is_of_other_than_classes(metric)) == (classes, other)
    assert takes_any_output(metric) == any_output


def test_what_needs_classes_refuses_what_is_known_to_be_of_something_else():
    choice = MetricChoice({"a": MulticlassF1Score(2), "id/b": MeanSquaredError()})
    choice.require_of_classes("AdaMerging", {"id/a": HEADS["id/a"], "id/c": HEADS["id/a"]})
    with pytest.raises(ValueError, match="AdaMerging is of .* loader 'id/b' is measured by MeanSquaredError"):
        choice.require_of_classes("AdaMerging", HEADS)


def test_kinds_differ_by_class_and_by_what_makes_another_figure():
    same = kind_of(MulticlassAccuracy(3)), kind_of(MulticlassAccuracy(9))
    assert len(set(same)) == 1
    others = MulticlassAccuracy(3, average="micro"), MulticlassAccuracy(3, top_k=2), BinaryAccuracy()
    assert len({*same, *map(kind_of, others)}) == 4
    assert kind_of(MetricCollection({"f1": MulticlassF1Score(3)})) == "a collection of f1"


def test_what_a_checkpoint_tells_must_be_given_again():
    choice = MetricChoice()
    choice.stored = "MeanSquaredError(squared=True)"
    assert choice.described() == choice.stored
    with pytest.raises(
        ValueError, match=r"metric=MeanSquaredError\(squared=True\), and load_from_checkpoint was given"
    ):
        choice.of(HEADS)

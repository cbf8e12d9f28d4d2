import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lwptv_lightning.evaluation import LoaderMetrics, averages


def test_each_loader_has_its_own_accuracy_whatever_the_number_of_classes():
    metrics = LoaderMetrics(["id/two", "ood/five.x"])
    metrics.count("id/two", None, 0, torch.eye(2), torch.tensor([0, 0]))
    metrics.count("ood/five.x", None, 0, torch.eye(5), torch.tensor([0, 1, 2, 3, 0]))
    assert metrics.compute() == pytest.approx({"id/two": 0.5, "ood/five.x": 0.8})


def test_a_collection_gives_one_figure_for_each_metric():
    collection = MetricCollection({"top1": MulticlassAccuracy(3, average="micro"), "top2": MulticlassAccuracy(3, 2)})
    metrics = LoaderMetrics(["id/a"], collection)
    metrics.count("id/a", None, 0, torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.4, 0.1]]), torch.tensor([0, 1]))
    assert metrics.compute() == {"id/a/top1": 0.5, "id/a/top2": 1.0}


def test_metric_that_is_none():
    with pytest.raises(TypeError, match="metric must be a torchmetrics Metric"):
        LoaderMetrics(["id/a"], torch.nn.CrossEntropyLoss())


def test_averages_of_several_metrics_stay_apart():
    figures = {"id/a/top1": 0.2, "id/b/top1": 0.4, "id/a/top2": 0.5, "id/b/top2": 0.7, "ood/c/top1": 0.1}
    assert averages(figures) == pytest.approx({"id/avg/top1": 0.3, "id/avg/top2": 0.6, "ood/avg/top1": 0.1})


def test_normalised_is_the_mean_of_quotients_over_the_sets_with_an_expert():
    figures = {"id/a": 0.4, "id/b": 0.9, "id/c": 0.1, "ood/a": 0.3}
    assert averages(figures, {"a": 0.8, "b": 0.9})["id/normalized"] == pytest.approx((0.4 / 0.8 + 0.9 / 0.9) / 2)
    assert "id/normalized" not in averages(figures, {"z": 0.8})

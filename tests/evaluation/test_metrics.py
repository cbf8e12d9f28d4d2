import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lwptv_lightning.evaluation import LoaderMetrics


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

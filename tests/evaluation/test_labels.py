import pytest
import torch
from torch import nn
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelAccuracy

from lwptv_lightning.evaluation import Heads, require_labels
from lwptv_lightning.evaluation.labels import require_logits

LOGITS = torch.zeros(3, 4)
IGNORING = MulticlassAccuracy(4, ignore_index=-1)


@pytest.mark.parametrize(
    ("logits", "targets", "metric"),
    [
        (LOGITS, torch.tensor([0, 3, 1]), None),
        (LOGITS, torch.tensor([0, 3, 1], dtype=torch.uint8), MulticlassAccuracy(4)),
        (LOGITS, torch.tensor([0, -1, 1]), IGNORING),
        (torch.zeros(3, 4, 2, 2), torch.zeros(3, 2, 2).long(), None),
        (torch.zeros(3).long(), torch.tensor([7, 8, 9]), None),  # labels, not logits
        (LOGITS[:0], torch.zeros(0).long(), None),
        (LOGITS, torch.eye(4)[:3], MultilabelAccuracy(4)),
        (LOGITS[:, 0], torch.rand(3), MeanSquaredError()),
        (LOGITS, torch.eye(4)[:3], MetricCollection([MeanSquaredError(), MulticlassAccuracy(4)])),
    ],
)
def test_what_a_metric_takes(logits, targets, metric):
    require_labels("id/a", logits, targets, metric)


@pytest.mark.parametrize("metric", [None, MulticlassAccuracy(4), MetricCollection([MulticlassAccuracy(4)])])
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 4, 1]), "has the label 4, but the model tells 4 classes apart, 0 to 3"),
        (torch.tensor([0, -2, 1]), "has the label -2"),
        (torch.eye(4)[:3], r"has targets of shape \(3, 4\), expected one label .*One-hot labels become such by argmax"),
        (torch.eye(4)[:3].long(), r"has targets of shape \(3, 4\)"),
        (
            torch.zeros(3, 1).long(),
            r"has targets of shape \(3, 1\), expected one label for each of the logits \(3, 4\)",
        ),
        (torch.zeros(2).long(), r"has targets of shape \(2,\)"),
        (torch.zeros(3), "has targets of dtype torch.float32, expected integer labels"),
    ],
)
def test_what_is_no_label_is_told_with_the_loaders_name(targets, message, metric):
    with pytest.raises(ValueError, match=f"loader 'ood/x y' {message}"):
        require_labels("ood/x y", LOGITS, targets, metric)


def test_a_label_that_is_ignored_is_none():
    with pytest.raises(ValueError, match="label 9"):
        require_labels("id/a", LOGITS, torch.tensor([-1, 9, 0]), IGNORING)


def test_a_model_without_a_classifier_needs_heads(make_vit):
    heads = Heads({"a": nn.Linear(48, 2)})
    with pytest.raises(ValueError, match=r"VisionTransformer returns features.*\('head' is an Identity\).*give heads="):
        require_logits(make_vit(), Heads({}))
    require_logits(make_vit(), heads)
    require_logits(make_vit(num_classes=3), Heads({}))
    require_logits(make_vit(), Heads({}), MeanSquaredError())
    model = nn.Sequential()
    require_logits(model, Heads({}))
    model.fc = nn.Identity()
    with pytest.raises(ValueError, match="'fc' is an Identity"):
        require_logits(torch.compile(model, backend="eager"), Heads({}))

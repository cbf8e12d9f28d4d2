"""Metrics that find more than one number: each part is logged under its name, and averages say of what they are."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassRecall, MulticlassROC
from torchmetrics.wrappers import ClasswiseWrapper, MetricTracker, MinMaxMetric

from lwptv_lightning import MergeModule, TaskVectors
from lwptv_lightning.evaluation import averages

CLASSES = 3


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(6, CLASSES)


@pytest.fixture
def vectors(model):
    tuned = [{name: tensor + torch.randn_like(tensor) for name, tensor in model.state_dict().items()} for _ in range(2)]
    return TaskVectors.open(model, dict(zip("ab", tuned, strict=True)))


@pytest.fixture
def loaders():
    torch.manual_seed(1)

    def loader(size):
        return DataLoader(TensorDataset(torch.randn(size, 6), torch.randint(CLASSES, (size,))), 4)

    return {"id/a": loader(13), "id/b": loader(9), "ood/far/away": loader(11)}


@pytest.fixture
def validate(model, vectors, loaders, make_trainer):
    def run(metric, stage="validate", **given):
        module = MergeModule(model, vectors, metric=metric, **given)
        entries = getattr(make_trainer(), stage)(module, loaders, verbose=False)
        return module, entries

    return run


def part(entries, loader):
    """Return the parts of a loader's figures, which are in one entry alone."""
    parts = [{key[len(loader) :]: entry[key] for key in entry if key.startswith(f"{loader}/")} for entry in entries]
    (found,) = filter(None, parts)
    return found


def expected_of(module, metric, loader):
    metric = metric.clone()
    inputs, targets = loader.dataset.tensors
    with torch.no_grad():
        metric.update(module(inputs), targets)
    return metric.compute()


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_accuracy_of_each_class(stage, validate, loaders):
    metric = MulticlassAccuracy(CLASSES, average=None)
    module, entries = validate(metric, stage)
    for entry, (name, loader) in zip(entries, loaders.items(), strict=True):
        values = expected_of(module, metric, loader)
        assert part(entries, name) == pytest.approx({f"/{index}": float(value) for index, value in enumerate(values)})
        assert [key for key in entry if "avg" not in key] == [f"{name}/{index}" for index in range(CLASSES)]
        for index in range(CLASSES):
            mean = (part(entries, "id/a")[f"/{index}"] + part(entries, "id/b")[f"/{index}"]) / 2
            assert entry[f"id/avg/{index}"] == pytest.approx(mean)
            assert entry[f"ood/avg/{index}"] == pytest.approx(part(entries, "ood/far/away")[f"/{index}"])
        assert "id/avg" not in entry


def test_named_classes_and_collections(validate, loaders):
    metric = MetricCollection(
        {
            "top1": MulticlassAccuracy(CLASSES, average="micro"),
            "recall": ClasswiseWrapper(MulticlassRecall(CLASSES, average=None), ["cat", "dog", "ox"], prefix="r_"),
            "matrix": MulticlassConfusionMatrix(CLASSES),
        }
    )
    module, entries = validate(metric)
    for name, loader in loaders.items():
        values = expected_of(module, metric, loader)
        found = part(entries, name)
        cells = {f"/matrix/{i}/{j}" for i in range(3) for j in range(3)}
        assert found.keys() == {"/top1", "/r_cat", "/r_dog", "/r_ox"} | cells
        assert found["/r_dog"] == pytest.approx(float(values["r_dog"]))
        assert found["/matrix/1/2"] == float(values["matrix"][1, 2])
    assert {"id/avg/top1", "id/avg/r_ox", "id/avg/matrix/2/2", "ood/avg/top1"} <= entries[0].keys()


class Detection(Metric):
    """Finds what `MeanAveragePrecision` does: a dict, in which the classes are those that were seen."""

    def __init__(self):
        super().__init__()
        self.add_state("seen", [], dist_reduce_fx="cat")

    def update(self, logits, targets):
        self.seen.append(targets)

    def compute(self):
        classes = torch.cat(self.seen).unique()
        found = {"map": torch.tensor(0.5), "map_per_class": classes / 10, "classes": classes.int()}
        return found | {"none": torch.zeros(0)}


def test_parts_that_not_all_loaders_have_are_in_no_average(model, vectors, make_trainer):
    loaders = {
        name: DataLoader(TensorDataset(torch.zeros(len(targets), 6), torch.tensor(targets)), 2)
        for name, targets in {"id/a": [0, 1, 2], "id/b": [0, 2]}.items()
    }
    entries = make_trainer().validate(MergeModule(model, vectors, metric=Detection()), loaders, verbose=False)
    found = {key: value for entry in entries for key, value in entry.items()}
    b = {f"id/b/{key}" for key in ("map", "map_per_class/0", "map_per_class/1", "classes/0", "classes/1")}
    assert {key for key in found if key.startswith("id/b/")} == b
    assert found["id/a/map_per_class/2"] == pytest.approx(0.2)
    assert found["id/avg/map"] == 0.5
    assert found["id/avg/map_per_class/1"] == pytest.approx(0.15)
    assert "id/avg/map_per_class/2" not in found


ROC_PARTS = {f"/{i}/{j}/{k}" for i in (0, 1) for j in range(3) for k in range(2)} | {"/2/0", "/2/1"}


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: MinMaxMetric(MulticlassAccuracy(CLASSES, average="micro")), {"/raw", "/min", "/max"}),
        (lambda: MulticlassROC(CLASSES, thresholds=2), ROC_PARTS),
        (lambda: MulticlassAccuracy(CLASSES, average="micro") + 1.0, None),
        (lambda: MulticlassAccuracy(CLASSES, average=None)[1:2], None),
    ],
)
def test_other_results(make, parts, validate):
    _, entries = validate(make())
    if parts is None:
        assert {"id/a", "id/avg", "ood/far/avg", "ood/avg"} == entries[0].keys()
    else:
        assert part(entries, "id/a").keys() == parts


class Says(Metric):
    def __init__(self, result):
        super().__init__()
        self.result = result
        self.add_state("number", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits, targets):
        self.number += 1

    def compute(self):
        return self.result


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        ("good", TypeError, "Says finds a str for 'id/a'; only numbers can be logged"),
        ({"top1": torch.tensor(1.0), "note": None}, TypeError, "Says finds a NoneType for 'id/a/note'"),
        (torch.zeros(200, 200), ValueError, r"Says finds 40000 numbers of shape \(200, 200\) for 'id/a'"),
    ],
)
def test_what_cannot_be_logged_is_refused_at_the_first_batch(result, error, message, validate):
    metric = Says(result)
    with pytest.raises(error, match=message):
        validate(metric)
    module = MergeModule(nn.Linear(6, 3), metric=metric)
    module.prepare({"id/a": [0]})
    with pytest.raises(error, match=message):
        module.count("id/a", (torch.zeros(2, 6), torch.zeros(2)), 0)


def test_a_part_that_is_called_as_another_loader_is_refused(model, vectors, loaders, make_trainer):
    loaders = {"id/g/a": loaders["id/a"], "id/g/a/top1": loaders["id/b"]}
    metric = MetricCollection({"top1": MulticlassAccuracy(CLASSES, average="micro")})
    with pytest.raises(ValueError, match="'id/g/a/top1' is a loader and a part of what the metric finds on 'id/g/a'"):
        make_trainer().validate(MergeModule(model, vectors, metric=metric), loaders, verbose=False)
    figures = make_trainer().validate(MergeModule(model, vectors), loaders, verbose=False)[0]
    sets = [figure for entry in [figures] for name, figure in entry.items() if name == "id/g/a"]
    assert sets
    assert "id/avg/top1" not in figures


def test_a_tracker_is_no_metric(model, vectors):
    with pytest.raises(TypeError, match="metric must be a torchmetrics Metric or MetricCollection"):
        MergeModule(model, vectors, metric=MetricTracker(MulticlassAccuracy(CLASSES)))


def test_one_batch_that_is_too_little_for_a_metric_does_not_stop_the_run(validate):
    class Needs(Says):
        def compute(self):
            if self.number < 2:
                raise ValueError("needs more than one batch")
            return self.number.float()

    _, entries = validate(Needs(None))
    assert entries[0]["id/a"] == 4


def test_experts_normalise_each_part_and_say_so(validate):
    accuracy = MulticlassAccuracy(CLASSES, average="micro")
    collection = MetricCollection({"top1": accuracy, "each": MulticlassAccuracy(CLASSES, average=None)})
    _, entries = validate(collection, expert_accuracy={"a": 0.5, "b": 0.8})
    top1 = [part(entries, name)["/top1"] for name in ("id/a", "id/b")]
    assert [key for key in entries[0] if "normalized" in key] == ["id/normalized/top1"]
    assert entries[0]["id/normalized/top1"] == pytest.approx((top1[0] / 0.5 + top1[1] / 0.8) / 2)


def test_averages_take_the_loaders_names_as_given():
    figures = {"ood/domainnet/clipart": 0.2, "ood/domainnet/sketch": 0.4, "ood/d/top1": 0.9, "id/a": 0.5}
    found = {"ood/domainnet/avg": 0.3, "ood/d/avg": 0.9, "ood/avg": 0.5, "id/avg": 0.5}
    assert averages(figures, loaders=figures) == pytest.approx(found)
    parts = {"ood/g/x/y/top1": 0.2, "ood/g/x/top1": 0.4}
    found = {"ood/g/avg/top1": 0.3, "ood/avg/top1": 0.3}
    assert averages(parts, loaders=["ood/g/x/y", "ood/g/x"]) == pytest.approx(found)

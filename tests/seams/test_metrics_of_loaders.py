"""Each loader has a metric of its own, of any kind, counted exactly on any number of processes; as a script, on two."""

import os
import sys
import warnings

import pytest
import torch
from _helpers.processes import launch, report
from _helpers.states import noise
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MultilabelAveragePrecision,
)

from lwptv_lightning import AdaMergingModule, CollectDataStatistics, MergeModule, OnlineMerge, TaskVectors
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import sweep

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
RECIPE = {"rule": "task_arithmetic", "scale": 0.5}
KEYS = ("pixel_values", "labels")


class First(nn.Module):
    """Turns the one output of a regression into a number a sample."""

    def forward(self, values):
        return values[:, 0]


def draw(targets, shape=(6,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        TensorDataset(torch.randn(len(targets), *shape, generator=generator), targets), 3, collate_fn=named
    )


def named(samples):
    """Put samples together to a batch with more in it than inputs and targets."""
    inputs, targets = (torch.stack(parts) for parts in zip(*samples, strict=True))
    return {"index": torch.arange(len(inputs)), "pixel_values": inputs, "labels": targets}


def build(metric=None):
    """Return a module of one backbone with heads of every kind, loaders for these, and a metric for each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
    vectors = TaskVectors.open(model, {task: noise(model.state_dict(), seed, 0.5) for seed, task in enumerate("ab")})
    heads = {
        "classes": nn.Linear(8, 3),
        "more": nn.Linear(8, 5),
        "labels": nn.Linear(8, 4),
        "value": nn.Sequential(nn.Linear(8, 1), First()),
    }
    loaders = {
        "id/classes": draw(torch.arange(10) % 3),
        "id/more": draw(torch.arange(13) % 5, seed=1),
        "ood/more": draw(torch.arange(11) % 5, seed=2),
        "ood/labels": draw((torch.arange(28).reshape(7, 4) % 3 == 0).long(), seed=3),
        "ood/value": draw(torch.linspace(-1, 1, 8), seed=4),
    }
    metrics = {
        "id/classes": MulticlassF1Score(3),
        "more": MulticlassF1Score(5),
        "labels": MultilabelAveragePrecision(4),
        "ood/value": MeanSquaredError(),
    }
    metric = metrics if metric is None else metric
    return MergeModule(model, vectors, RECIPE, heads=heads, metric=metric, batch_keys=KEYS), loaders


def build_dense():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3, padding=1)
    vectors = TaskVectors.open(model, {task: noise(model.state_dict(), seed, 0.5) for seed, task in enumerate("ab")})
    heads = {"few": nn.Conv2d(4, 3, 1), "many": nn.Conv2d(4, 5, 1)}
    loaders = {}
    for name, head in heads.items():
        targets = torch.arange(7 * 36).reshape(7, 6, 6) % head.out_channels
        targets[:, 0] = 255
        loaders[f"id/{name}"] = draw(targets, (3, 6, 6))
    made = MergeModule(
        model,
        vectors,
        RECIPE,
        heads=heads,
        metric=lambda head: MulticlassJaccardIndex(head.out_channels, ignore_index=255),
        batch_keys=KEYS,
    )
    return made, loaders


def figures(made, **options):
    module, loaders = made
    options = {"accelerator": "cpu", "devices": 1} | options
    entries = Trainer(**QUIET, **options).validate(module, loaders, verbose=False)
    return {name: value for entry in entries for name, value in entry.items()}


def oracle(made):
    """Return each loader's figure as torchmetrics finds it on all of its samples at once."""
    module, loaders = made
    module.merge_()
    found = {}
    for name, metric in module.metric_choice.of(module.heads_for(loaders)).items():
        inputs, targets = loaders[name].dataset.tensors
        metric = metric.clone()
        with torch.no_grad():
            metric.update(module(inputs, module.head_of(name)), targets)
        found[name] = float(metric.compute())
    return found


def run():
    warnings.filterwarnings("ignore")
    size = int(os.environ["WORLD_SIZE"])
    found = {
        name: figures(make(), devices=size, strategy="ddp")
        for name, make in (("build", build), ("build_dense", build_dense))
    }
    predicted = Trainer(**QUIET, accelerator="cpu", devices=size, strategy="ddp").predict(*build())
    found["predicted"] = [[sum(map(len, batches)), *batches[0].shape[1:]] for batches in predicted]
    report(sys.argv[1], int(os.environ["RANK"]), found)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch(__file__, tmp_path_factory.mktemp("metrics"), ranks=2)


@pytest.mark.parametrize("make", [build, build_dense])
def test_figures_are_torchmetrics_own_on_one_process_and_on_two(make, two):
    expected, found = oracle(make()), figures(make())
    assert len({*expected.values()}) == len(expected)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    for process in two:
        assert process[make.__name__] == pytest.approx(found)


def test_two_processes_predict_their_shares_each_by_its_head(two):
    first, second = (process["predicted"] for process in two)
    assert [shape[1:] for shape in first] == [shape[1:] for shape in second] == [[3], [5], [5], [4], []]
    assert [one[0] + other[0] for one, other in zip(first, second, strict=True)] == [10, 13, 11, 7, 8]


def test_averages_are_of_one_kind_and_the_others_are_told(caplog):
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        found = figures(build())
    assert found["id/avg"] == pytest.approx((found["id/classes"] + found["id/more"]) / 2)
    assert "ood/avg" not in found
    (told,) = [record.message for record in caplog.records if "There is no" in record.message]
    assert told.startswith("There is no ood/avg. 'ood/more' is measured by MulticlassF1Score(")
    assert "'ood/labels' by MultilabelAveragePrecision" in told


def test_collections_are_averaged_under_one_name():
    metrics = {
        "classes": MetricCollection({"score": MulticlassF1Score(3), "top2": MulticlassAccuracy(3, top_k=2)}),
        "more": MetricCollection({"score": MulticlassF1Score(5)}),
        "labels": MetricCollection({"score": MultilabelAveragePrecision(4)}),
        "value": MetricCollection({"error": MeanSquaredError()}),
    }
    found = figures(build(metrics))
    averages = {name: value for name, value in found.items() if "/avg" in name}
    assert averages == {"id/avg/score": pytest.approx((found["id/classes/score"] + found["id/more/score"]) / 2)}


def test_a_function_of_the_head_and_the_models_own_classifier():
    module, loaders = build(lambda head: MulticlassF1Score(head.out_features))
    some = {name: loaders[name] for name in ("id/classes", "id/more")}
    assert figures((module, some)) == pytest.approx(
        {name: value for name, value in figures(build()).items() if name.startswith("id/")}
    )
    model = nn.Linear(6, 3)
    vectors = TaskVectors.open(model, {"a": noise(model.state_dict(), 0, 0.5)})
    alone = MergeModule(model, vectors, metric=lambda model: MulticlassF1Score(model.out_features), batch_keys=KEYS)
    assert set(figures((alone, {"id/a": loaders["id/classes"]}))) == {"id/a", "id/avg"}


class Unread(TensorDataset):
    def __getitem__(self, index):
        pytest.fail("a sample was read")


def unread(loaders):
    return {name: DataLoader(Unread(*loader.dataset.tensors)) for name, loader in loaders.items()}


def test_names_are_checked_before_anything_runs(make_trainer):
    score = MulticlassF1Score(3)
    module, loaders = build({"id/classes": score, "id/mor": MulticlassF1Score(5), "ood/x": score})
    loaders = unread(loaders)
    for evaluate in ("validate", "test"):
        with pytest.raises(ValueError, match="metric has none for loader 'id/more'. Did you mean 'id/mor'"):
            getattr(make_trainer(), evaluate)(module, loaders, verbose=False)
        with pytest.raises(UnknownNameError, match="loader in metric: 'id/mor'"):
            getattr(make_trainer(), evaluate)(module, {"id/classes": loaders["id/classes"]}, verbose=False)
    with pytest.raises(ValueError, match="none for loader 'id/more'"):
        sweep(make_trainer(), module, {"own": RECIPE}, loaders)
    with pytest.raises(ValueError, match="none for loader 'id/more'"):
        OnlineMerge(module, loaders, task="c")
    assert module.installed is None  # and nothing was merged


def test_another_number_of_classes_is_refused_before_anything_runs(make_trainer):
    module, loaders = build(MulticlassF1Score(3))
    some = unread({name: loaders[name] for name in ("id/classes", "id/more")})
    with pytest.raises(ValueError, match="loader 'id/more': its head tells 5 classes apart.*num_classes=3"):
        make_trainer().validate(module, some, verbose=False)


def test_predictions_need_no_metric(make_trainer):
    module, loaders = build({"id/other": MeanSquaredError()})
    predicted = make_trainer().predict(module, loaders)
    assert [batches[0].shape[1:] for batches in predicted] == [(3,), (5,), (5,), (4,), ()]


def test_labels_are_checked_where_they_are_labels(make_trainer):
    module, loaders = build()
    loaders["id/more"] = draw(torch.arange(13) % 7, seed=1)
    with pytest.raises(ValueError, match="loader 'id/more' has the label 5, but the model tells 5 classes apart"):
        make_trainer().validate(module, loaders, verbose=False)


def test_what_torchmetrics_refuses_is_told_with_the_loaders_name(make_trainer):
    module, loaders = build(BinaryAccuracy())
    some = {"id/classes": loaders["id/classes"]}
    with pytest.raises(ValueError, match=r"loader 'id/classes': BinaryAccuracy .*\(3, 3\), with targets, \(3,\): Pre"):
        make_trainer().validate(module, some, verbose=False)


def test_what_is_of_classes_refuses_other_metrics_before_anything_runs(make_trainer):
    module, loaders = build()
    with pytest.raises(ValueError, match="a sweep is of .* loader 'ood/labels' is measured by MultilabelAverageP"):
        sweep(make_trainer(), module, {"own": RECIPE}, unread(loaders))
    some = {f"id/{task}": loaders["ood/value"] for task in "ab"}
    heads = {task: module.head("value") for task in "ab"}
    valued = MergeModule(module.model, module.vectors, RECIPE, heads=heads, metric=MeanSquaredError(), batch_keys=KEYS)
    with pytest.raises(ValueError, match="Fisher information is of .* loader 'id/a' is measured by MeanSquaredError"):
        make_trainer(callbacks=[CollectDataStatistics("fisher")]).validate(valued, unread(some), verbose=False)
    with pytest.raises(ValueError, match="AdaMerging is of .* loader 'id/a' is measured by MeanSquaredError"):
        make_trainer(max_steps=1).fit(AdaMergingModule(valued), some)


def test_one_output_is_no_choice_between_classes(make_trainer):
    module, _ = build()
    heads = {task: nn.Linear(8, 1) for task in "ab"}
    single = MergeModule(module.model, module.vectors, RECIPE, heads=heads, batch_keys=KEYS)
    some = {f"id/{task}": draw(torch.zeros(4).long()) for task in "ab"}
    message = r"gives logits of shape \(\d, 1\), expected \(B, C.*\) of at least two classes"
    with pytest.raises(ValueError, match=message):
        make_trainer(max_steps=1).fit(AdaMergingModule(single), some)
    with pytest.raises(ValueError, match=message):
        make_trainer(callbacks=[CollectDataStatistics("fisher")]).validate(single, some, verbose=False)


def test_dense_predictions_have_no_sweep_and_no_fisher_information(make_trainer):
    module, loaders = build_dense()
    message = r"gives logits of shape \(\d, 3, 6, 6\), expected \(B, C\)"
    with pytest.raises(ValueError, match=message):
        sweep(make_trainer(), module, {"own": RECIPE}, loaders)
    tasks = {f"id/{task}": loaders["id/few"] for task in "ab"}
    dense = MergeModule(
        module.model, module.vectors, RECIPE, heads={task: module.head("few") for task in "ab"}, batch_keys=KEYS
    )
    dense.metric_choice = module.metric_choice
    with pytest.raises(ValueError, match=message):
        make_trainer(callbacks=[CollectDataStatistics("fisher")]).validate(dense, tasks, verbose=False)
    make_trainer(max_steps=1).fit(AdaMergingModule(dense), tasks)


def test_a_checkpoint_names_the_metric_that_must_be_given_again(make_trainer, tmp_path):
    trainer = make_trainer()
    made = build()
    trainer.validate(*made, verbose=False)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    given = {"model": made[0].model, "heads": dict(made[0].heads.items())}
    loaded = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", **given)
    with pytest.raises(ValueError, match=r"with metric=\{'id/classes': MulticlassF1Score\(.*load_from_checkpoint was"):
        make_trainer().validate(loaded, made[1], verbose=False)
    again = build()[0].metric_choice
    loaded = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", **given, metric={**dict(again.named)})
    assert figures((loaded, made[1])) == figures(made)


if __name__ == "__main__":
    run()

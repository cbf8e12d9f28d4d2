"""Loaders in groups, ``ood/near/x``, in all that goes by a set's name or shows an average."""

import csv
import io

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lwptv_lightning import (
    CollectDataStatistics,
    EvaluationSuite,
    MergeModule,
    MergeReport,
    OnlineMerge,
    TaskVectors,
)
from lwptv_lightning.evaluation import no_fractions
from lwptv_lightning.merging import model_card
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import sweep

LOADERS = ("id/a", "id/day/b", "id/night/b", "ood/near/x", "ood/far/x", "ood/far/y")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.fixture
def vectors(model, fine_tuned):
    return TaskVectors.open(model, {task: fine_tuned(model.state_dict(), seed) for seed, task in enumerate("ab")})


def loader(classes=4):
    return DataLoader(TensorDataset(torch.randn(6, 6), torch.randint(classes, (6,))), 3)


@pytest.fixture
def loaders(model):
    return {name: loader() for name in LOADERS}


def accuracy(model, head, data):
    inputs, targets = data.dataset.tensors
    with torch.no_grad():
        return float((head(model(inputs)).argmax(1) == targets).double().mean())


def test_a_validation_gives_each_groups_average_and_that_over_all(model, vectors, loaders, make_trainer):
    entries = make_trainer().validate(MergeModule(model, vectors), EvaluationSuite.of(loaders), verbose=False)
    found = {name: value for entry in entries for name, value in entry.items()}
    averages = {"id/day/avg", "id/night/avg", "id/avg", "ood/near/avg", "ood/far/avg", "ood/avg"}
    assert found.keys() == {*LOADERS, *averages}
    assert found["ood/near/avg"] == pytest.approx(found["ood/near/x"])
    assert found["ood/far/avg"] == pytest.approx((found["ood/far/x"] + found["ood/far/y"]) / 2)
    assert found["ood/avg"] == pytest.approx(sum(found[name] for name in LOADERS[3:]) / 3)


@pytest.mark.parametrize("taken", ["ood/near/avg", "ood/avg/x", "ood/near", "id/day"])
def test_a_loader_that_averages_would_take_is_refused_before_anything_runs(
    taken, model, vectors, loaders, make_trainer
):
    module, loaders = MergeModule(model, vectors), {**loaders, taken: loader()}
    for run in (
        lambda: make_trainer().validate(module, loaders, verbose=False),
        lambda: sweep(make_trainer(), module, {"a": "ties"}, loaders),
        lambda: OnlineMerge(module, loaders, task="c"),
        lambda: EvaluationSuite.of(loaders),
    ):
        with pytest.raises(ValueError, match=f"loader '{taken}'"):
            run()


def test_a_head_goes_by_the_sets_name_or_by_its_group_and_name_first(model, vectors, loaders, make_trainer):
    own = {name: nn.Linear(4, 4) for name in ("a", "b", "x", "near/x", "y")}
    module = MergeModule(model, vectors, heads={**own, "night/b": "a"})
    entries = make_trainer().validate(module, loaders, verbose=False)
    used = dict(zip(LOADERS, ("a", "b", "a", "near/x", "x", "y"), strict=True))
    for entry, (name, head) in zip(entries, used.items(), strict=True):
        assert entry[name] == pytest.approx(accuracy(module.model, own[head], loaders[name]))


def test_a_set_without_a_head_is_named_with_the_nearest(model, vectors, loaders):
    module = MergeModule(model, vectors, heads={name: nn.Linear(4, 4) for name in ("a", "b", "near/x", "far/xx", "y")})
    with pytest.raises(UnknownNameError, match="unknown head for loader 'ood/far/x': 'x'"):
        module.prepare(loaders)


def test_a_name_with_a_slash_keeps_its_own_head(model, vectors):
    module = MergeModule(model, vectors, heads={"domainnet/clipart": nn.Linear(4, 4), "clipart": nn.Linear(4, 4)})
    module.prepare({"ood/domainnet/clipart": loader(), "ood/clipart": loader(), "ood/other/clipart": loader()})
    heads = [module.head_of(name) for name in ("ood/domainnet/clipart", "ood/clipart", "ood/other/clipart")]
    assert heads == ["domainnet/clipart", "clipart", "clipart"]


def test_a_metric_goes_by_the_longest_name(model, vectors, loaders):
    f1, top2, micro = MulticlassF1Score(4), MulticlassAccuracy(4, top_k=2), MulticlassAccuracy(4, average="micro")
    metric = {"a": micro, "b": micro, "x": f1, "far/x": top2, "ood/far/y": f1}
    module = MergeModule(model, vectors, metric=metric)
    module.prepare(loaders, partly=False)
    kinds = [type(module.metrics[name]).__name__ for name in LOADERS]
    assert kinds == [*["MulticlassAccuracy"] * 3, "MulticlassF1Score", "MulticlassAccuracy", "MulticlassF1Score"]
    assert module.metrics["ood/far/x"].top_k == 2
    with pytest.raises(UnknownNameError, match="near/y"):
        MergeModule(model, vectors, metric={**metric, "near/y": f1}).prepare(loaders, partly=False)
    with pytest.raises(ValueError, match="metric has none for loader 'ood/near/x'"):
        MergeModule(model, vectors, metric=dict.fromkeys(("a", "b", "far/x", "y"), micro)).prepare(loaders)


def test_experts_normalise_sets_of_their_groups(model, vectors, loaders, make_trainer):
    module = MergeModule(model, vectors, expert_accuracy={"a": 0.5, "b": 0.8, "night/b": 0.25})
    entries = make_trainer().validate(module, loaders, verbose=False)
    found = {name: value for entry in entries for name, value in entry.items()}
    divided = [found["id/a"] / 0.5, found["id/day/b"] / 0.8, found["id/night/b"] / 0.25]
    assert found["id/normalized"] == pytest.approx(sum(divided) / 3)
    assert module.measured.controls == {"experts": {"id/a": 0.5, "id/day/b": 0.8, "id/night/b": 0.25}}


def test_averages_over_what_is_no_fraction_are_none():
    metrics = dict.fromkeys(LOADERS, MulticlassAccuracy(4)) | {"ood/far/x": MeanSquaredError()}
    shown = [*LOADERS, "id/avg", "ood/near/avg", "ood/far/avg", "ood/avg"]
    assert no_fractions(metrics, shown) == {"ood/far/x", "ood/far/avg", "ood/avg"}
    parts = MetricCollection({"error": MeanSquaredError(), "top1": MulticlassAccuracy(4)})
    shown = ["ood/near/x/error", "ood/near/x/top1", "ood/near/avg/error", "ood/near/avg/top1", "ood/far/avg/error"]
    assert no_fractions({"ood/near/x": parts}, shown) == {"ood/near/x/error", "ood/near/avg/error"}


def test_a_longer_name_is_no_part_of_a_shorter_loaders_result():
    metrics = {"ood/near/x": MeanSquaredError(), "ood/near/x/y": MulticlassAccuracy(4)}
    shown = ["ood/near/x", "ood/near/x/y", "ood/near/x/y/0", "ood/near/avg"]
    assert no_fractions(metrics, shown) == {"ood/near/x", "ood/near/avg"}


def test_a_sweep_compares_over_a_group(model, vectors, loaders, make_trainer):
    found = sweep(make_trainer(), MergeModule(model, vectors), {"low": {"scale": 0.1}, "high": {"scale": 3.0}}, loaders)
    figures = {name: found.figures(name) for name in found.names}
    for over in ("id", "id/day", "ood", "ood/near", "ood/far"):
        change = figures["high"][f"{over}/avg"] - figures["low"][f"{over}/avg"]
        assert found.difference("high", "low", over).value == pytest.approx(change)


def test_statistics_of_data_take_each_loader_of_a_task(model, vectors, loaders, make_trainer):
    both = CollectDataStatistics("gram")
    make_trainer(callbacks=[both]).validate(MergeModule(model, vectors), loaders, verbose=False)
    one = CollectDataStatistics("gram")
    together = torch.utils.data.ConcatDataset([loaders[name].dataset for name in ("id/day/b", "id/night/b")])
    make_trainer(callbacks=[one]).validate(
        MergeModule(model, vectors), {"id/a": loaders["id/a"], "id/b": DataLoader(together, 3)}, verbose=False
    )
    for name, value in one.statistics["b"].items():
        torch.testing.assert_close(both.statistics["b"][name], value)
    with pytest.raises(ValueError, match="task 'b' has no loader 'id/b'"):
        make_trainer(callbacks=[one]).validate(
            MergeModule(model, vectors), {"id/a": loaders["id/a"], "ood/day/b": loaders["id/day/b"]}, verbose=False
        )


def test_averages_of_groups_in_a_fit_can_be_monitored_and_are_reported(model, vectors, loaders, make_trainer, tmp_path):
    class Tuned(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    report = MergeReport(tmp_path / "report", Console(file=io.StringIO(), width=300))
    kept = ModelCheckpoint(tmp_path / "kept", monitor="merged/ood/near/avg", mode="max")
    callbacks = [OnlineMerge(MergeModule(model, vectors), loaders, task="c", backbone="net"), report, kept]
    trainer = make_trainer(callbacks=callbacks, max_epochs=1, enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(Tuned(), loader(), loader())
    assert float(kept.best_model_score) == pytest.approx(trainer.callback_metrics["merged/ood/near/x"].item())
    with (tmp_path / "report" / "results.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert [name for name in row if name.endswith("/avg")] == [
        "id/day/avg",
        "id/night/avg",
        "id/avg",
        "ood/near/avg",
        "ood/far/avg",
        "ood/avg",
    ]
    assert float(row["ood/near/avg"]) == pytest.approx(float(row["ood/near/x"]))
    assert (tmp_path / "report" / "id_ood.png").is_file()


def test_a_card_keeps_sets_of_one_name_apart(model, vectors):
    figures = {"ood/near/x": 0.5, "ood/far/x": 0.25, "ood/near/avg": 0.5, "ood/avg": 0.375}
    card = model_card(MergeModule(model, vectors, "ties").merge_().provenance(), figures=figures, name="m")
    assert all(f"| {heading} " in card for heading in ("ood near/x", "ood far/x", "OOD near avg", "OOD avg"))
    assert {"type: ood-near-x", "type: ood-far-x"} <= {line.strip() for line in card.splitlines()}

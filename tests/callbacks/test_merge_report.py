"""What `MergeReport` writes, prints and gives to loggers, each the real one where it is installed."""

import errno
import io

import pytest
import torch
from _helpers.markup import Page
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lwptv_lightning import MergeModule, MergeRecipe, MergeReport, OnlineMerge, TaskVectors
from lwptv_lightning.evaluation import no_fractions

FILES = {"figures", "id_ood.png", "recipe.json", "report.html", "report.md", "results.csv", "saliency.png"}

PRUNED = MergeRecipe(ratio=0.5)


@pytest.fixture
def loaders():
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(8, 6, generator=generator), torch.randint(0, 4, (8,), generator=generator))
    return {name: DataLoader(data, batch_size=4) for name in ("id/a", "ood/b")}


@pytest.fixture
def validate(fine_tuned, loaders, make_trainer, tmp_path):
    """``validate(*loggers)``: validate a merged model with a report; returns what was printed."""

    def run(*loggers, recipe=PRUNED, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        vectors = TaskVectors.open(
            model, {task: fine_tuned(model.state_dict(), seed) for seed, task in enumerate("ab")}
        )
        module = MergeModule(model, vectors, recipe)
        printed = io.StringIO()
        report = MergeReport(tmp_path / "report", Console(file=printed, width=200), **options)
        trainer = make_trainer(callbacks=[report], logger=list(loggers) or False)
        trainer.validate(module, loaders, verbose=False)
        for logger in loggers:
            logger.finalize("success")
        return printed.getvalue()

    return run


def size(path):
    with Image.open(path) as image:
        return image.size


def test_files_and_table(validate, tmp_path):
    printed = validate()
    assert {path.name for path in (tmp_path / "report").iterdir()} == FILES
    assert "task_arithmetic" in printed
    assert f"Report written to {tmp_path}" in printed.replace("\n", "")


def test_csv_logger_has_no_pictures(validate, tmp_path):
    validate(CSVLogger(tmp_path, name="csv"))
    assert "id/avg" in (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
    assert not list((tmp_path / "csv").rglob("*.png"))
    assert {path.name for path in (tmp_path / "report").iterdir()} == FILES


def test_tensorboard(validate, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    validate(TensorBoardLogger(tmp_path, name="tb", version="run"))
    events = EventAccumulator(str(tmp_path / "tb" / "run"))
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["id_ood", "saliency"]
    (image,) = events.Images("id_ood")
    assert (image.width, image.height) == size(tmp_path / "report" / "id_ood.png")
    assert "id/avg" in events.Tags()["scalars"]


def test_wandb(validate, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install 'lwptv-lightning[loggers]'")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "wb").mkdir()
    validate(WandbLogger(save_dir=str(tmp_path / "wb"), offline=True))
    wandb.finish()
    pictures = {path.name.rsplit("_", 2)[0]: size(path) for path in (tmp_path / "wb").rglob("media/images/*.png")}
    assert pictures == {name: size(tmp_path / "report" / f"{name}.png") for name in ("id_ood", "saliency")}


def test_mlflow(validate, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'lwptv-lightning[loggers]'")
    # Recent versions keep runs in files on request only; a database would need more libraries.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    validate(MLFlowLogger("report", tracking_uri=f"file:{tmp_path / 'ml'}"))
    pictures = {path.name: size(path) for path in (tmp_path / "ml").rglob("artifacts/*.png")}
    assert pictures == {
        f"{name}_step0.png": size(tmp_path / "report" / f"{name}.png") for name in ("id_ood", "saliency")
    }


def test_a_fit_adds_a_row_for_each_validation(loaders, make_trainer, tmp_path):
    class FineTuning(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 4)

        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).sum()

        def validation_step(self, batch, batch_idx):
            self.log_dict({"loss": 1.0, "merged/id/avg": 0.5, "merged/ood/avg": 0.25})

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    report = MergeReport(tmp_path / "report", Console(file=io.StringIO()))
    make_trainer(callbacks=[report], max_epochs=2).fit(FineTuning(), loaders["id/a"], loaders["ood/b"])
    assert [row.name for row in report.table.rows] == ["FineTuning, epoch 0", "FineTuning, epoch 1"]
    assert report.table.rows[1].figures == {"id/avg": 0.5, "ood/avg": 0.25}
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert written == {"figures", "id_ood.png", "report.html", "report.md", "results.csv"}


@pytest.mark.parametrize("name", ["report.md", "results.csv"])
def test_another_s_file_is_refused_before_anything_is_evaluated(name, loaders, make_trainer, tmp_path):
    (tmp_path / name).write_text("mine")

    class Unused(LightningModule):
        def validation_step(self, batch, batch_idx):
            raise AssertionError

    trainer = make_trainer(callbacks=[MergeReport(tmp_path, Console(file=io.StringIO()))])
    with pytest.raises(FileExistsError, match=f"holds '{name}'.*overwrite=True"):
        trainer.validate(Unused(), loaders)
    assert (tmp_path / name).read_text() == "mine"


def test_the_files_are_there_before_anything_is_printed(validate, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(Console, "print", broken)
    with pytest.raises(BrokenPipeError):
        validate()
    assert {path.name for path in (tmp_path / "report").iterdir()} == FILES
    monkeypatch.undo()
    validate()


def test_figures_of_a_regression_are_no_percentages(make_trainer, tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    vectors = TaskVectors.open(model, {"a": {name: value + 1 for name, value in model.state_dict().items()}})
    loaders = {
        "id/a": DataLoader(TensorDataset(torch.zeros(4, 6), torch.zeros(4, 1))),
        "ood/b": DataLoader(TensorDataset(torch.zeros(4, 6), torch.zeros(4).long())),
    }
    collection = MetricCollection({"error": MeanSquaredError(), "top1": MulticlassAccuracy(average="micro")})
    metric = {"a": MeanSquaredError(), "b": collection["top1"]}
    module = MergeModule(model, vectors, {"rule": "task_arithmetic"}, metric=metric)
    report = MergeReport(tmp_path / "report", Console(file=io.StringIO()))
    make_trainer(callbacks=[report]).validate(module, loaders, verbose=False)
    (row,) = report.table.rows
    assert row.plain == {"id/a", "id/avg"}
    error = row.figures["id/a"]
    assert report.table.cells(row)[1:5] == [f"{error:.4g}", "100.0", f"{error:.4g}", "100.0"]
    assert not (tmp_path / "report" / "id_ood.png").exists()  # of two percentages
    parts = ["id/a/error", "id/a/top1", "id/avg/error", "id/avg/top1", "ood/avg/error"]
    named = no_fractions({"id/a": collection}, parts)
    assert named == {"id/a/error", "id/avg/error"}


def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_tells_what_was_merged(validate, tmp_path):
    validate()
    found = page(tmp_path / "report")
    assert found.faults == []
    for words in ("task_arithmetic x 0.3, mean_abs 0.5: ID average", "How it was made", "fingerprint", "torch", "8"):
        assert words in found.text
    drawn = {path.stem for path in (tmp_path / "report" / "figures").glob("*.svg")}
    assert drawn == {"id_ood", "saliency", "similarity", "changes"}
    for name in ("saliency.png", "id_ood.png"):
        beside = (tmp_path / "report" / name).read_bytes()
        assert beside == (tmp_path / "report" / "figures" / name).read_bytes()


def test_another_run_s_report_is_refused_before_anything_is_evaluated(validate, tmp_path, monkeypatch):
    validate()
    before = (tmp_path / "report" / "report.html").read_bytes()
    validate()
    assert (tmp_path / "report" / "report.html").read_bytes() == before
    with monkeypatch.context() as patched:
        patched.setattr(MergeModule, "count", None)
        with pytest.raises(FileExistsError, match=r"report of another run.*overwrite=True"):
            validate(recipe=MergeRecipe("ties"))
    assert (tmp_path / "report" / "report.html").read_bytes() == before
    validate(recipe=MergeRecipe("ties"), overwrite=True)
    assert "ties" in page(tmp_path / "report").text
    assert not (tmp_path / "report" / "saliency.png").exists()


def test_a_report_of_other_sets_or_of_fewer_samples_is_another_run_s(validate, loaders, tmp_path, monkeypatch):
    validate()
    before = (tmp_path / "report" / "results.csv").read_bytes()
    data = loaders["ood/b"].dataset
    for name, size in (("ood/c", 8), ("ood/b", 4)):
        with monkeypatch.context() as patched:
            patched.setattr(MergeModule, "count", None)
            patched.delitem(loaders, "ood/b")
            patched.setitem(loaders, name, DataLoader(Subset(data, range(size)), batch_size=4))
            with pytest.raises(FileExistsError, match=r"report of another run.*MergeReport\(overwrite=True\)"):
                validate()
    assert (tmp_path / "report" / "results.csv").read_bytes() == before


def test_further_rows_of_one_run_join_the_first(fine_tuned, loaders, make_trainer, tmp_path):
    model = nn.Linear(6, 4)
    vectors = TaskVectors.open(model, {"a": fine_tuned(model.state_dict(), 0)})
    report = MergeReport(tmp_path / "report", Console(file=io.StringIO()))
    trainer = make_trainer(callbacks=[report])
    for recipe in ("ties", "dare"):
        trainer.validate(MergeModule(model, vectors, recipe), loaders, verbose=False)
    assert [row.name.split()[0] for row in report.table.rows] == ["ties", "dare"]
    assert {"ties", "dare"} <= {line.split()[0] for line in page(tmp_path / "report").texts if line.split()}


def test_controls_stand_beside_the_merge(validate, tmp_path):
    printed = validate(controls=True)
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "expert b" in printed
    found = page(tmp_path / "report")
    assert found.faults == []
    for words in ("Paired differences", "expert a", "expert b", "base", "mean of 10 random masks", "minus base"):
        assert words in text
        assert words in found.text
    drawn = {path.stem for path in (tmp_path / "report" / "figures").glob("*.svg")}
    assert drawn == {"id_ood", "saliency", "tasks", "similarity", "changes"}


def test_controls_that_cannot_be_measured_are_refused_before_anything_is_evaluated(make_trainer, loaders, tmp_path):
    model = nn.Linear(6, 1)
    vectors = TaskVectors.open(model, {"a": {name: value + 1 for name, value in model.state_dict().items()}})

    class Unused(MergeModule):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            raise AssertionError

    report = MergeReport(tmp_path, Console(file=io.StringIO()), controls=True)
    with pytest.raises(ValueError, match=r"controls=True.*MeanSquaredError"):
        make_trainer(callbacks=[report]).validate(Unused(model, vectors, metric=MeanSquaredError()), loaders)

    class Plain(LightningModule):
        validation_step = Unused.validation_step

    with pytest.raises(ValueError, match="needs a MergeModule with its task vectors, not Plain"):
        make_trainer(callbacks=[MergeReport(tmp_path / "b", controls=True)]).validate(Plain(), loaders)


class Tuned(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("random", torch.rand(()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def fit(fine_tuned, loaders, make_trainer):
    """``fit(*reports)``: train with `OnlineMerge`; returns the module, the trainer, and a random number drawn after."""

    def run(*reports):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4))
        vectors = TaskVectors.open(model, {"b": fine_tuned(model.state_dict(), 3)})
        online = OnlineMerge(MergeModule(model, vectors, MergeRecipe(ratio=0.5)), loaders, task="a", backbone="net")
        torch.manual_seed(0)
        module, trainer = Tuned(), make_trainer(callbacks=[online, *reports], max_epochs=2)
        trainer.fit(module, loaders["id/a"], loaders["ood/b"])
        return module, trainer, torch.rand(4)

    return run


def test_a_report_with_controls_does_not_disturb_a_fit(fit, tmp_path):
    alone, alone_trainer, alone_drawn = fit()
    report = MergeReport(tmp_path / "report", Console(file=io.StringIO()), controls=True)
    module, trainer, drawn = fit(report)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, module.state_dict()[name])
    assert torch.equal(drawn, alone_drawn)
    assert module.training == alone.training
    assert trainer.state == alone_trainer.state
    assert trainer.logged_metrics == alone_trainer.logged_metrics
    names = [row.name for row in report.table.rows]
    assert names[:3] == ["base", "expert b", "expert a"]
    assert names[3:6] == ["Tuned, epoch 0", "Tuned, epoch 1", "Tuned, end of fit"]
    assert names[6:] == ["task_arithmetic x 0.3", "mean of 10 random masks"]
    rows = {row.name: row.figures for row in report.table.rows}
    assert rows["Tuned, end of fit"] == pytest.approx(rows["Tuned, epoch 1"])


def test_controls_in_a_fit_need_what_merges_there(loaders, make_trainer, tmp_path):
    trainer = make_trainer(callbacks=[MergeReport(tmp_path, controls=True)], max_epochs=1)
    with pytest.raises(ValueError, match="needs OnlineMerge"):
        trainer.fit(Tuned(), loaders["id/a"], loaders["ood/b"])


def test_a_fit_whose_folder_fails_warns_once_and_goes_on(fit, tmp_path, monkeypatch):
    printed = io.StringIO()

    def full(self, *given, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lwptv_lightning.files.atomic.Stage.install", full)
    report = MergeReport(tmp_path / "report", Console(file=printed, width=200))
    with pytest.warns(UserWarning, match="no report was written, training goes on.*No space left") as caught:
        _, trainer, _ = fit(report)
    assert trainer.current_epoch == 2
    assert len([each for each in caught if "no report was written" in str(each.message)]) == 1
    assert "Tuned, epoch 1" in printed.getvalue()
    assert "Report written" not in printed.getvalue()


def test_a_validation_whose_folder_fails_prints_and_raises(validate, tmp_path, monkeypatch, capsys):
    def full(self, *given, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lwptv_lightning.files.atomic.Stage.install", full)
    printed = []
    monkeypatch.setattr(Console, "print", lambda self, table, **named: printed.append(table))
    with pytest.raises(OSError, match="No space left"):
        validate()
    assert len(printed) == 1

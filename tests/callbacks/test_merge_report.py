"""What `MergeReport` writes, prints and gives to loggers, each the real one where it is installed."""

import io

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lwptv_lightning import MergeModule, MergeRecipe, MergeReport, TaskVectors
from lwptv_lightning.evaluation import no_fractions

FILES = {"id_ood.png", "recipe.json", "report.md", "results.csv", "saliency.png"}


@pytest.fixture
def loaders():
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(8, 6, generator=generator), torch.randint(0, 4, (8,), generator=generator))
    return {name: DataLoader(data, batch_size=4) for name in ("id/a", "ood/b")}


@pytest.fixture
def validate(fine_tuned, loaders, make_trainer, tmp_path):
    """``validate(*loggers)``: validate a merged model with a report; returns what was printed."""

    def run(*loggers):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        vectors = TaskVectors.open(
            model, {task: fine_tuned(model.state_dict(), seed) for seed, task in enumerate("ab")}
        )
        module = MergeModule(model, vectors, MergeRecipe(ratio=0.5))
        printed = io.StringIO()
        report = MergeReport(tmp_path / "report", Console(file=printed))
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
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"id_ood.png", "report.md", "results.csv"}


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

"""Names of loaders, tasks, layers, tensors and models may hold any characters, and are shown as they are."""

import csv
import io
import json
import re
import sys

import pytest
import torch
from _helpers.odd_names import HOSTILE, steering
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import (
    AdaMergingModule,
    CollectDataStatistics,
    EvaluationSuite,
    MergeModule,
    MergeRecipe,
    MergeReport,
    OnlineMerge,
    TaskVectors,
    merge,
)
from lwptv_lightning.inspection import check, check_tables, diff, diff_table
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging import PruningPlan, read_data_statistics, save_merged
from lwptv_lightning.registry import encodable, matches, printable, require_matches, width_of
from lwptv_lightning.report import ResultRow, ResultTable, literal, plot_id_ood, plot_saliency, print_table
from lwptv_lightning.saliency import LayerTable, keep_most_salient
from lwptv_lightning.search import sweep

NAMES = (
    "domainnet/clipart",
    "a.b.c",
    "two words",
    "[bold]not bold[/bold]",
    "[/]",
    "costs $5",
    r"$\frac$ and $",
    "a|b",
    "back\\slash|",
    ":smile:",
    "中文",
    "Ωμέγα é",
    "العربية",
    "_hidden",
    "half",
    "accuracy",
    "average",
    "id",
    "ood",
    "far/id/x",
    "100%",
    "{curly}",
    "*starred*",
    "`code`",
    "<b>",
    "-1",
)
"""What people call things, and what looks like something else to what shows it."""


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def vectors_of(model, tasks, fine_tuned):
    return TaskVectors.open(model, {task: fine_tuned(model.state_dict(), seed) for seed, task in enumerate(tasks)})


def loader():
    return DataLoader(TensorDataset(torch.randn(6, 6), torch.randint(4, (6,))), 3)


def printed(*tables):
    console = Console(file=io.StringIO(), width=40, emoji=False)
    for table in tables:
        print_table(table, console)
    return console.file.getvalue()


def test_every_step_of_a_validation(model, fine_tuned, make_trainer, tmp_path):
    vectors = vectors_of(model, NAMES, fine_tuned)
    heads = {name: nn.Linear(4, 4) for name in NAMES}
    suite = EvaluationSuite(id={name: loader() for name in NAMES}, ood={name: loader() for name in NAMES})
    report = MergeReport(tmp_path / "[red] $x$ 中", Console(file=io.StringIO(), width=200))
    module = MergeModule(model, vectors, MergeRecipe(ratio=0.5), heads=heads, expert_accuracy=dict.fromkeys(NAMES, 0.5))
    trainer = make_trainer(callbacks=[report], logger=CSVLogger(tmp_path, name="logs"))
    entries = trainer.validate(module, suite, verbose=False)
    groups = ("[", "[bold]not bold[", "domainnet", "far")
    averages = {
        "id/normalized",
        *(f"{at}/avg" for domain in ("id", "ood") for at in (domain, *(f"{domain}/{group}" for group in groups))),
    }
    for entry, name in zip(entries, suite.loaders, strict=True):
        assert name in entry
        assert entry.keys() - {name} == averages
    figures = {key: value for entry in entries for key, value in entry.items()}
    for domain in ("id", "ood"):
        assert figures[f"{domain}/avg"] == pytest.approx(
            sum(figures[f"{domain}/{name}"] for name in NAMES) / len(NAMES)
        )
    assert figures["id/normalized"] == pytest.approx(figures["id/avg"] / 0.5)
    shown = report._console.file.getvalue()
    assert max(map(width_of, shown.splitlines()[:-1])) <= 100
    assert shown.count(f"{len(NAMES)} sets") == 2  # each set's figures are in the file
    assert str(tmp_path / "[red] $x$ 中") in shown.replace("\n", "")
    rows = list(csv.DictReader((tmp_path / "[red] $x$ 中" / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(rows[0][f"id/{name}"]) for name in NAMES] == [figures[f"id/{name}"] for name in NAMES]
    for lines in tables_of((tmp_path / "[red] $x$ 中" / "report.md").read_text(encoding="utf-8")):
        assert len({line.replace("\\\\", "").replace("\\|", "").count("|") for line in lines}) == 1
    assert all((tmp_path / "[red] $x$ 中" / f"{name}.png").exists() for name in ("saliency", "id_ood"))
    with (tmp_path / "logs" / "version_0" / "metrics.csv").open(encoding="utf-8") as file:
        assert {f"ood/{name}" for name in NAMES} <= set(next(csv.reader(file)))
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    loaded = MergeModule.load_from_checkpoint(tmp_path / "module.ckpt", model=model, heads=heads)
    assert loaded.tasks == NAMES
    assert loaded.head_names == NAMES


def tables_of(report):
    """Return the lines of each table of a report in Markdown."""
    found = [part.splitlines() for part in report.split("\n\n") if part.startswith("|")]
    assert len(found) > 3
    return found


@pytest.mark.parametrize(("encoding", "names"), [("utf-8", HOSTILE[::2]), ("ascii", HOSTILE[1::2])])
def test_hostile_names_in_every_step(encoding, names, model, fine_tuned, make_trainer, tmp_path, monkeypatch):
    names = [name for name in names if name.strip()]
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    folder = tmp_path / "[/x] \x1b[2J \udcff"
    module = MergeModule(model, vectors_of(model, names[:5], fine_tuned), MergeRecipe(ratio=0.5))
    trainer = make_trainer(callbacks=[MergeReport(folder)], logger=CSVLogger(tmp_path, name="logs"))
    entries = trainer.validate(module, {f"id/{name}": loader() for name in names} | {"ood/x": loader()})
    assert all(f"id/{encodable(name)}" in entry for name, entry in zip(names, entries, strict=False))
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert not steering(shown)
    assert not steering(report)
    assert "[/x] \\x1b[2J \\udcff" in shown
    short = [text for name in names if len(text := printable(name)) < 20 and " " not in text]
    assert len(short) > 10
    assert all(f"id/{text} " in shown for text in short)  # in the trainer's own table
    assert all(f"| id {literal(text.replace('_', ' '))} |" in report for text in short)
    for lines in tables_of(report):
        assert len({re.sub(r"\\.", "", line).count("|") for line in lines}) == 1
    with (tmp_path / "logs" / "version_0" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        assert {f"id/{encodable(name)}" for name in names} <= set(next(csv.reader(file)))


def test_the_trainers_own_table(model, fine_tuned, make_trainer, capsys):
    names = [f"id/{name}" for name in NAMES]
    module = MergeModule(model, vectors_of(model, NAMES, fine_tuned))
    make_trainer().validate(module, {name: loader() for name in names})
    shown = capsys.readouterr().out
    assert all(f"id/{name} " in shown for name in ("[/]", "costs $5", "a|b", "中文", "<b>", ":smile:"))
    assert "[bold]" in shown
    make_trainer().test(module, {name: loader() for name in names})


def test_a_sweep_and_its_differences(model, fine_tuned, make_trainer):
    vectors = vectors_of(model, NAMES[:2], fine_tuned)
    loaders = {"ood/domainnet/clipart": loader(), "ood/domainnet/sketch": loader(), "id/[b] $|中": loader()}
    result = sweep(make_trainer(), MergeModule(model, vectors), {"[bold] $x$": {"scale": 0.5}}, loaders)
    figures = result.figures("[bold] $x$")
    assert figures.keys() == {*loaders, "ood/domainnet/avg", "ood/avg", "id/avg"}
    assert figures["ood/avg"] == pytest.approx((figures["ood/domainnet/clipart"] + figures["ood/domainnet/sketch"]) / 2)
    assert str(result.difference("[bold] $x$", "[bold] $x$", "ood")) == "+0.0 [+0.0, +0.0]"


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_statistics_of_data_and_their_file(kind, model, fine_tuned, make_trainer, tmp_path):
    tasks = NAMES[:12]
    vectors = vectors_of(model, tasks, fine_tuned)
    collector = CollectDataStatistics(kind, file=tmp_path / "中 $x$.safetensors")
    loaders = {f"id/{task}": loader() for task in tasks}
    make_trainer(callbacks=[collector]).validate(MergeModule(model, vectors), loaders, verbose=False)
    assert tuple(read_data_statistics(tmp_path / "中 $x$.safetensors")) == tasks


def test_learning_and_merging_online(model, fine_tuned, make_trainer):
    vectors = vectors_of(model, NAMES[:3], fine_tuned)
    learning = AdaMergingModule(MergeModule(model, vectors))
    make_trainer(max_steps=1).fit(learning, {f"id/{task}": loader() for task in NAMES})
    assert merge(vectors, learning.recipe()).keys() == set(vectors.names)

    class Tuning(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    online = OnlineMerge(
        MergeModule(model, vectors), {f"ood/{name}": loader() for name in NAMES}, task="[new] $中|", backbone="net"
    )
    trainer = make_trainer(max_epochs=1, callbacks=[online])
    trainer.fit(Tuning(), loader())
    logged = trainer.callback_metrics
    assert float(logged["merged/ood/avg"]) == pytest.approx(
        sum(float(logged[f"merged/ood/{name}"]) for name in NAMES) / len(NAMES)
    )


def test_tensors_and_layers(fine_tuned, tmp_path):
    names = [f"{name}.weight" for name in NAMES if name != "-1"] + ["blocks[0].w", "blocks[1].w", "a/b $x$|中.w"]
    base = {name: torch.zeros(3, 3) for name in names}
    tuned = {task: {name: torch.randn(3, 3) for name in names} for task in ("[red]x", "中 $")}
    vectors = TaskVectors.open(base, tuned)
    layers = layers_from_names(names)
    for rule in ("task_arithmetic", "ties", "dare"):
        merged = merge(vectors, MergeRecipe(rule, ratio=0.5), layers)
        assert merged.keys() == set(names)
    path = save_merged(vectors, MergeRecipe(), tmp_path / "[x] $中|.safetensors", layers)
    tables = check_tables(check(base, tuned))
    assert "[red]x" in printed(*tables)
    shown = printed(diff_table(diff(base, path)))
    assert all(layer.split("\n")[0] in shown for layer in ("[bold]not bold[/bold]", "[/]", ":smile:", "costs $5"))
    excluded = TaskVectors.open(base, tuned, exclude=("blocks[0].w",))
    assert "blocks[0].w" not in excluded.names
    assert "blocks[1].w" in excluded.names


def test_a_name_with_brackets_is_its_own_glob():
    assert matches("blocks[0].w", ["blocks[0].w"])
    assert matches("blocks0.w", ["blocks[0].w"])
    assert not matches("blocks[1].w", ["blocks[0].w"])
    require_matches("tensor", ["a[1]*", "b[2]"], ["a1x", "b[2]"])


def test_tables_show_names_as_they_are():
    rows = [ResultRow(name, {f"id/{name}": 0.5, "id/avg/top|1": 0.25}, note=f"{name}\nmore") for name in NAMES]
    table = ResultTable(rows)
    shown = printed(table.rich("[bold] $title"))
    assert "[bold] $title" in shown
    assert all(f"{name} " in shown for name in NAMES)
    lines = table.markdown().splitlines()
    assert len(lines) == len(NAMES) + 2
    cells = [line.replace("\\\\", "").replace("\\|", "").count("|") for line in lines]
    assert set(cells) == {len(table.headings) + 1}
    assert lines[2].startswith("| domainnet/clipart |")
    assert r"| \$\\frac\$ and \$ |" in lines[2 + NAMES.index(r"$\frac$ and $")]
    assert r"| \*starred\* |" in lines[2 + NAMES.index("*starred*")]
    assert ResultTable([ResultRow("---", {})]).markdown().splitlines()[2] == "| --- |  |  |"
    parsed = list(csv.DictReader(io.StringIO(table.csv())))
    assert [row["model"] for row in parsed] == list(NAMES)


def test_pictures_show_names_as_they_are(tmp_path):
    tensors = [f"{name}.w" for name in NAMES]
    layers = layers_from_names(tensors)
    values = torch.rand(len(NAMES), len(layers.names))
    scores = LayerTable(NAMES, layers.names, torch.ones(len(layers.names)), values)
    plan = PruningPlan(layers, scores, keep_most_salient(scores, 0.5))
    rows = [ResultRow(name, {"id/avg": index / 50, "ood/avg": 0.5}) for index, name in enumerate(NAMES)]
    rows.append(ResultRow(f"{NAMES[5]} pruned", rows[5].figures))
    for path in (plot_saliency(plan, tmp_path / "中 $x$.png"), plot_id_ood(rows, tmp_path / "[b].png", rows, rows)):
        with Image.open(path) as image:
            assert min(image.size) > 100


def test_what_is_logged_under_a_domains_own_name_breaks_nothing(make_trainer, tmp_path):
    class Logs(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 4)

        def validation_step(self, batch, batch_idx):
            self.log_dict(
                {"id": 7.0, "ood": 3.0, "merged/id": 1.0, "idx/a": 2.0, "id/": 4.0, "loss": 1.0, **self.figures}
            )

    report = MergeReport(tmp_path, Console(file=io.StringIO()))
    module = Logs()
    module.figures = {}
    make_trainer(callbacks=[report]).validate(module, loader(), verbose=False)
    assert report.table.rows == []
    module.figures = {"id/avg": 0.5, "ood/avg": 0.25, "id/set": float("nan")}
    make_trainer(callbacks=[report]).validate(module, loader(), verbose=False)
    assert report.table.rows[0].figures.keys() == {"id/avg", "ood/avg", "id/set"}
    assert (tmp_path / "id_ood.png").exists()


def test_averages_that_are_no_numbers_draw_no_picture(make_trainer, tmp_path):
    class Logs(LightningModule):
        def validation_step(self, batch, batch_idx):
            self.log_dict({"id/avg": float("nan"), "ood/avg": 0.5})

    make_trainer(callbacks=[MergeReport(tmp_path, Console(file=io.StringIO()))]).validate(
        Logs(), loader(), verbose=False
    )
    assert {path.name for path in tmp_path.glob("*.*")} == {"report.html", "report.md", "results.csv"}
    assert not (tmp_path / "figures").exists()


def test_a_name_that_lightning_takes_is_refused_before_the_run(model, fine_tuned, make_trainer):
    module = MergeModule(model, vectors_of(model, "ab", fine_tuned))
    with pytest.raises(ValueError, match="'id/a/dataloader_idx_1'.*taken by Lightning"):
        make_trainer().validate(module, {"id/a/dataloader_idx_1": loader()}, verbose=False)


def test_tables_of_scores_go_through_json():
    table = LayerTable(NAMES, NAMES, torch.ones(len(NAMES)), torch.rand(len(NAMES), len(NAMES)))
    text = json.dumps(json.loads(table.to_json()))
    assert LayerTable.from_json(text).layers == NAMES

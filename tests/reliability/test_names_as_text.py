"""Hostile names of tensors, tasks, layers, sets and files go through every command, table, picture and error."""

import csv
import io
import sys
import warnings

import pytest
import torch
from _helpers.odd_names import HOSTILE, drawn, steering
from PIL import Image
from rich.console import Console
from torch import nn

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, merge, save_merged
from lwptv_lightning.cli import main
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging import PruningPlan
from lwptv_lightning.registry import printable_name
from lwptv_lightning.report import ResultRow, ResultTable, plot_id_ood, plot_saliency, print_table
from lwptv_lightning.saliency import LayerTable, keep_most_salient

ENCODINGS = ("utf-8", "latin-1", "ascii")


@pytest.fixture
def lwptv(monkeypatch):
    """``lwptv(encoding, *arguments)``: what a run printed, to output and errors together."""

    def run(encoding, *arguments):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors) for errors in ("strict", None)]
        streams[1].reconfigure(errors="backslashreplace")  # as Python's standard error is
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            try:
                main(list(map(str, arguments)))
            except SystemExit as stop:
                if isinstance(stop.code, str):
                    sys.stderr.write(stop.code)
            for stream in streams:
                stream.flush()
        text = "".join(stream.buffer.getvalue().decode(encoding) for stream in streams)
        assert not steering(text), (arguments, text)
        assert "Traceback" not in text
        return text

    return run


def in_a_stream(name, encoding):
    return printable_name(name).encode(encoding, "backslashreplace").decode(encoding)


def file_of(name):
    """Return a file's name like another name, of which neither the system nor torch takes all."""
    return "".join(letter for letter in name if letter not in "/\\\0\ud800\udcff")[:20]


def names_of(seed):
    """Return four names of tensors that stay four as layers."""
    return [f"{number}{HOSTILE[(seed + number) % len(HOSTILE)]}{drawn(4 * seed + number)}" for number in range(4)]


def test_commands(lwptv, tmp_path, amount, row):
    tried = 0
    for seed in range(amount(20, 300)):
        names, encoding = names_of(seed), ENCODINGS[seed % 3]
        task = (drawn(~seed) or "x").replace("=", "").replace("\0", "") or "task"
        folder = tmp_path / str(seed)
        folder.mkdir()
        base = {name: torch.randn(3, 2, generator=torch.Generator().manual_seed(0)) for name in names}
        tuned = {name: tensor * 1.01 for name, tensor in base.items()}
        reshaped = tuned | {names[0]: torch.zeros(5)}
        other = {**tuned, f"{names[1]}extra": torch.zeros(2)}
        del other[names[1]]
        paths = []
        for number, state in enumerate((base, tuned, reshaped, other)):
            paths.append(folder / f"{number}{file_of(drawn(seed + 7))}.pt")
            torch.save(state, paths[-1])
        first, good, wrong, missing = paths
        shown = lwptv(encoding, "check", "--wide", first, f"{task}={good}", f"{task}2={wrong}", f"{task}3={missing}")
        absent = [name for name in (task, names[0], names[1]) if in_a_stream(name[:99], encoding) not in shown]
        assert not absent, (seed, encoding, absent, shown)
        shown = lwptv(encoding, "diff", "--wide", first, good, "--granularity", "tensor")
        absent = [name for name in names if in_a_stream(name, encoding).strip() not in shown]
        assert not absent, (seed, encoding, absent, shown)
        for taken in (good, wrong, missing):
            out = folder / f"{file_of(drawn(seed))}.safetensors"
            shown = lwptv(encoding, "merge", first, f"{task}={taken}", "--out", out, "--overwrite")
            assert "Merged" in shown or "lwptv merge: " in shown
        for wrong_use in (
            ("--exclude", f"{names[0]}?"),
            ("--keep", f"{names[1]}?", "--ratio", "0.5"),
            ("--task", f"{names[2]}"),
            ("--rule", drawn(seed)),
            ("--recipe", folder / file_of(names[3])),
            ("--set", f"{drawn(seed)}=1"),
            (f"--{drawn(seed)}",),
        ):
            shown = lwptv(encoding, "merge", first, f"{task}={good}", "--out", folder / "m.safetensors", *wrong_use)
            assert "lwptv merge: " in shown or "lwptv: error: " in shown
        lwptv(encoding, "merge", first, f"{task}={folder / file_of(drawn(seed))}", "--out", folder / "m.safetensors")
        lwptv(encoding, "diff", first, drawn(seed))
        lwptv(encoding, drawn(seed))
        tried += 14
    row(f"{tried:,} commands with hostile names of tensors, tasks, files, options", "all shown as text, 0 tracebacks")


def test_reports(tmp_path, amount, row):
    tried = 0
    for seed in range(amount(3, 100)):
        names = [f"{HOSTILE[(seed * 8 + number) % len(HOSTILE)]}{drawn(seed * 8 + number)}" for number in range(8)]
        rows = [
            ResultRow(name, {f"id/{name}": 0.5, "id/avg": 0.1 * i, "ood/avg": 0.5}, note=name)
            for i, name in enumerate(names)
        ]
        table = ResultTable(rows)
        stream = io.TextIOWrapper(io.BytesIO(), encoding=ENCODINGS[seed % 3])
        print_table(table.rich(names[0], wide=True), Console(file=stream, width=60), wide=True)
        stream.flush()
        shown = stream.buffer.getvalue().decode(stream.encoding)
        assert not steering(shown)
        assert all(in_a_stream(name, stream.encoding) in shown for name in names)
        markdown = table.markdown()
        assert not steering(markdown)
        assert len(markdown.split("\n")) == len(names) + 2
        (tmp_path / "results.csv").write_text(table.csv(), encoding="utf-8", newline="")
        with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
            cells = [line["model"] for line in csv.DictReader(file)]
        assert [cell.lstrip("'") for cell in cells] == [
            name.encode("utf-8", "backslashreplace").decode().lstrip("'") for name in names
        ]
        assert not any(cell.startswith(tuple("=+-@\t\r")) for cell in cells)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of glyphs that are missing
            plot_id_ood(rows, tmp_path / "id_ood.png")
            plot_saliency(plan_of(names), tmp_path / "saliency.png")
        for picture in ("id_ood.png", "saliency.png"):
            with Image.open(tmp_path / picture) as image:
                assert 100 < min(image.size) <= max(image.size) < 4_000
        tried += len(names)
    row(f"{tried:,} hostile names in tables, Markdown, CSV and pictures", "all shown as text, none breaks its row")


def plan_of(names):
    tasks, layers = tuple(dict.fromkeys(names[:3])), layers_from_names(dict.fromkeys(names), "tensor")
    scores = LayerTable(tasks, layers.names, torch.ones(len(layers)), torch.rand(len(tasks), len(layers)))
    return PruningPlan(layers, scores, keep_most_salient(scores, 0.5))


class _Named(nn.Module):
    """A module with a tensor of any name."""

    def __init__(self, name, shape):
        super().__init__()
        self.name, self.tensor = name, torch.zeros(shape)

    def state_dict(self, *args, **kwargs):
        return {self.name: self.tensor}


def mistakes(name, folder):
    """Yield what the library must refuse, of a tensor, task or layer of some name."""
    base, tuned = {name: torch.ones(2, 2), "w": torch.ones(4)}, {name: torch.full((2, 2), 2.0), "w": torch.ones(4)}
    vectors = TaskVectors.open(base, {name: tuned})
    layers = layers_from_names([name, "w"], "tensor")
    yield lambda: TaskVectors.open(base, {name: {name: torch.ones(3)}})
    yield lambda: TaskVectors.open(base, {name: {**tuned, f"{name}2": torch.ones(3)}})
    yield lambda: TaskVectors.open(base, {name: {"w": torch.ones(4)}})
    yield lambda: TaskVectors.open(base, {name: {**tuned, name: torch.ones(2, 2, dtype=torch.int64)}})
    yield lambda: TaskVectors.open(base, {name: {**tuned, "x": name}})
    yield lambda: merge(TaskVectors.open({**base, name: torch.full((2, 2), torch.nan)}, {name: tuned}))
    yield lambda: TaskVectors.open(base, {name: tuned}, exclude=[f"{name}x"])
    yield lambda: TaskVectors.open(base, {name: tuned}, prefix=name * 2)
    yield lambda: TaskVectors.open(base, {name: folder / file_of(name)})
    yield lambda: merge(vectors, MergeRecipe(task=f"{name}x"))
    yield lambda: merge(vectors, f"rule{name}")
    yield lambda: merge(vectors, {"rule": "ties", name: 1})
    yield lambda: merge(vectors, MergeRecipe(ratio=0.5, keep=(f"{name}x",)))
    yield lambda: merge(vectors, MergeRecipe(ratio=0.5, granularity="tensor", keep=("*",), prune=("*",)), layers)
    yield lambda: merge(vectors, MergeRecipe(ratio=0.5, granularity="tensor"), layers_from_names(["w"], "tensor"))
    yield lambda: merge(vectors, "fisher", data={"other": {}})
    yield lambda: merge(vectors, "fisher", data={name: {name: torch.ones(1), "w": torch.ones(4)}})
    yield lambda: merge(
        TaskVectors.open({"w": torch.ones(2, dtype=torch.float16)}, {name: {"w": torch.tensor([7e4, 1])}})
    )
    yield lambda: merge(
        TaskVectors.open({name: torch.ones(2).half()}, {"a": {name: torch.tensor([6e4, 1]).half()}}),
        {"rule": "task_arithmetic", "scale": 9.0},
    )
    yield lambda: merge(vectors, "tsv_m", max_memory=1)
    yield lambda: layers.index_of(f"{name}x")
    yield lambda: layers_from_names([name, name], "tensor")
    yield lambda: MergeModule(_Named(name, (3,)), vectors)
    yield lambda: MergeModule(_Named(f"{name}x", (2, 2)), vectors)
    yield lambda: vectors.expert(f"{name}x", name)
    yield lambda: vectors.select([f"{name}x"])
    yield lambda: save_merged(vectors, MergeRecipe(), folder / f"{file_of(name)}.pt")
    yield lambda: MergeRecipe(rule=name)
    yield lambda: MergeRecipe.from_dict({name: 1})


def error_of(mistake):
    try:
        mistake()
    except (ValueError, KeyError, TypeError, OSError) as error:
        return error
    return None


def test_errors(tmp_path, amount, row):
    raised = 0
    names = [*HOSTILE, *map(drawn, range(amount(0, 1_500))), "m" * 1_000_000]
    for name in names[:: amount(4, 1)] + names[-1:]:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for number, mistake in enumerate(mistakes(f"n{name}", tmp_path)):
                if (error := error_of(mistake)) is not None:
                    text = str(error)
                    assert not steering(text), (number, text[:2_000])
                    assert len(text) < 8_000, (number, text[:500])
                    assert "\n" not in text, (number, text[:2_000])
                    raised += 1
        assert not any(steering(str(each.message)) for each in warned)
    assert raised > 20
    row(f"{raised:,} errors about hostile names, and about one of a megabyte", "all on one line of text")

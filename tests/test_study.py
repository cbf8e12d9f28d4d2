"""The study: stopped and resumed it ends with the same tables, of which its page is made."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest
from _helpers.example_scripts import example_scripts

from lwptv_lightning import MergeRecipe


@pytest.fixture(scope="module")
def study():
    with example_scripts("study") as script:
        yield script


@pytest.fixture(scope="module")
def small(study):
    """A study of two fronts of three scales on few images, with few bootstrap draws."""
    methods, comparisons, subject, run = map(study, ("methods", "comparisons", "subject", "run"))
    front = methods.Front(rule="task_arithmetic", recipe=MergeRecipe(), steps=(-4, -2, 0), refined=False)
    pruned = replace(front, variant="mean_abs 0.5", recipe=MergeRecipe(ratio=0.5))
    few = ["--zoos", "shipped", "--stages", "core", "--size", "6", "--validation", "6"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "_STAGES", {"core": lambda: [front, pruned]})
        patch.setattr(methods, "STAGES", ("core",))
        patch.setattr(comparisons, "BOOTSTRAPS", 20)
        patch.setattr(run, "ORDER", (("core", "shipped"),))
        patch.setattr(subject, "UNLABELLED", 2)
        yield lambda folder: run.main(["--cache", str(folder / "cache"), "--out", str(folder / "out"), *few])


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """The folder of a study that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    small(folder)
    return folder


def tables_in(folder):
    return {path.name: path.read_text() for path in (folder / "out").iterdir()}


class Killed(BaseException):
    pass


def test_stopped_and_resumed_it_ends_with_the_same_tables(study, small, whole, tmp_path, monkeypatch):
    store = study("outcomes").Store
    put, calls = store.put, []

    def put_some(self, key, outcome):
        calls.append(key)
        if len(calls) == 8:  # in the middle of a front
            raise Killed
        put(self, key, outcome)

    monkeypatch.setattr(store, "put", put_some)
    with pytest.raises(Killed):
        small(tmp_path)
    assert not (tmp_path / "out").exists()
    calls.clear()
    monkeypatch.setattr(store, "put", lambda self, key, outcome: (calls.append(key), put(self, key, outcome)))
    small(tmp_path)
    assert len(calls) == 12 - 7
    assert tables_in(tmp_path) == tables_in(whole)
    calls.clear()
    small(tmp_path)
    assert not calls


def test_the_tables_say_what_was_measured(study, whole):
    with (whole / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 + 6
    assert {row["scale"] for row in rows if row["variant"] == "mean_abs 0.5"} == {"0.15", "0.2121", "0.3"}
    for row in rows:
        near = [float(value) for name, value in row.items() if name.startswith("ood/near/")]
        assert float(row["ood/near"]) == pytest.approx(np.mean(near), abs=0.01)
    for variant in ("unpruned", "mean_abs 0.5"):
        chosen = [row for row in rows if row["variant"] == variant and "best" in row["chosen"].split(" and ")]
        validation = [float(row["validation id"]) for row in rows if row["variant"] == variant]
        assert [float(row["validation id"]) for row in chosen] == [max(validation)]
    tables = study("reading").Tables.read(whole / "out")
    method, own = study("methods").Method("task_arithmetic", "mean_abs 0.5"), study("methods").Method("task_arithmetic")
    best = {
        each: max(float(row["id"]) + float(row["ood"]) for row in tables.of("shipped", each)) for each in (method, own)
    }
    base = tables.single("shipped", "base")
    floor = float(base["id"]) + float(base["ood"])
    gain = (max(best[method], floor) - max(best[own], floor)) / 2
    assert tables.difference("shipped", method, own, "best mean", "ood").value == pytest.approx(gain, abs=0.02)


def test_the_page_is_made_of_the_tables_alone(study, whole, tmp_path):
    made = tmp_path / "docs"
    study("page").main(["--results", str(whole / "out"), "--docs", str(made)])
    page = (made / "study.md").read_text()
    linked = set(re.findall(r"\((study_[a-z]+[.]png)\)", page))
    assert linked == {path.name for path in made.iterdir()} - {"study.md"}
    tables = study("reading").Tables.read(whole / "out")
    method, own = study("methods").Method("task_arithmetic", "mean_abs 0.5"), study("methods").Method("task_arithmetic")
    assert str(tables.difference("shipped", method, own, "best mean", "ood")) in page
    assert "LayerGates on TSV-M" not in page.partition("## What was asked")[0]


def test_what_learns_and_chooses_sees_no_ood_image(study, tmp_path):
    subject = study("subject").open_subject("shipped", tmp_path, size=2, validation=3, draws=2)
    tasks = {f"id/{task}" for task in subject.module.vectors.tasks}
    for loaders in (subject.sets["validation"], subject.in_order(1), subject.shuffled(0, 2)):
        assert set(loaders) == tasks
    for task, pool in subject.pool.items():
        held = [subject.sets[split][f"id/{task}"] for split in ("validation", "test")]
        seen, others = ({image.numpy().tobytes() for image, _ in images} for images in (pool, held[0] + held[1]))
        assert len(seen) == len(pool)
        assert not seen & others

import re

import pytest

from lwptv_lightning import LayerGates, MergeRecipe, zoo
from lwptv_lightning.cli import learn, main
from lwptv_lightning.cli.learn import in_full

CONFIGURATION = """
model: {class_path: lwptv_lightning.zoo.zoo_module}
data: {class_path: lwptv_lightning.zoo.zoo_suite, init_args: {size: 4}}
trainer:
  logger: false
  accelerator: cpu
  enable_progress_bar: false
  max_steps: 2
  callbacks: [{class_path: lwptv_lightning.MergeReport, init_args: {folder: report}}]
learn: {per: task, lr: 0.01, initial: 0.2}
"""
SUITE = """
model: {class_path: lwptv_lightning.zoo.zoo_module}
data: {class_path: _helpers.gated.untouchable}
trainer: {logger: false, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""
GIVEN = [str(zoo.base_path()), *(f"{task}={path}" for task, path in zoo.expert_paths().items())]


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all.yaml").write_text(CONFIGURATION)
    (tmp_path / "suite.yaml").write_text(SUITE)


def test_learnt_coefficients_are_a_recipe(tmp_path):
    main(["learn", "--config", "all.yaml", "--out", "learnt.json"])
    recipe = MergeRecipe.from_json(tmp_path / "learnt.json")
    (row,) = recipe.rule.coefficients.values()
    assert len(row) == 5
    assert all(0 < abs(value - 0.2) < 0.03 for value in row)  # Adam's steps are as long as its rate at most
    assert {path.name for path in tmp_path.iterdir()} == {"all.yaml", "suite.yaml", "learnt.json"}


def test_gates_are_learnt_of_files_and_no_ood_data_is_read(tmp_path, monkeypatch, capsys):
    steps = []
    monkeypatch.setattr(learn, "STEPS", 2)
    monkeypatch.setattr(LayerGates, "on_train_end", lambda self: steps.append(self.trainer.global_step))
    main(["learn", *GIVEN, "--data", "suite.yaml", "--out", "gates.json", "--images", "6", "--rule=task_arithmetic"])
    assert steps == [2]
    assert "The learnt recipe is in gates.json" in capsys.readouterr().out
    recipe = MergeRecipe.from_json(tmp_path / "gates.json")
    assert recipe.rule.name == "task_arithmetic"
    assert all(0 < abs(value - 0.25) < 0.05 for row in recipe.coefficients.values() for value in row.values())


@pytest.mark.parametrize("method", ["layer_gates", "adamerging"])
def test_sets_of_tasks_may_stand_in_groups(method, tmp_path, monkeypatch):
    from lightning.pytorch import Trainer

    given = []
    monkeypatch.setattr(Trainer, "fit", lambda self, module, loaders: given.extend(loaders))
    monkeypatch.setattr(LayerGates, "recipe", lambda self: MergeRecipe())
    (tmp_path / "grouped.yaml").write_text(SUITE.replace("untouchable", "grouped"))
    words = ["--method", method, "--trainer.max_steps=1"]
    main(["learn", "--config", "grouped.yaml", "--out", "g.json", *words])
    first, *others = zoo.ID_SETS
    own = [f"id/{first}", *(f"id/g/{name}" for name in others)]
    # Gates have one loader a task; AdaMerging takes all that there are.
    assert set(given) == {*own, *([] if method == "layer_gates" else [f"id/g/{first}"])}


def test_words_and_options_may_stand_in_any_order():
    suite = ["--data", "s.yaml", "--out=g.json", "--trainer.max_steps", "5", "--batch-size", "3"]
    orders = [["b", "x=y", *suite], [*suite, "b", "x=y"]]
    orders.append([*suite[:2], "b", *suite[2:], "x=y"])
    found = [in_full(order) for order in orders]
    assert found[0] == found[1] == found[2]
    arguments, method = found[0]
    assert method == "layer_gates"
    assert arguments[:6] == ["--config", "s.yaml", "--out=g.json", "--trainer.max_steps", "5", "--gates.batch_size"]
    assert arguments[-2:] == ["--model.init_args.base=b", '--model.init_args.tasks={"x": "y"}']


REFUSED = {
    "no task": ([*GIVEN[:1], "--data", "suite.yaml", "--out", "g.json"], "are required: NAME=CHECKPOINT"),
    "no data": ([*GIVEN[:2], "--out", "g.json"], "are required: --data"),
    "no base": ([*GIVEN[1:2], "--data", "suite.yaml", "--out", "g.json"], "BASE comes before TASK"),
    "no out": ([*GIVEN, "--data", "suite.yaml"], "are required: --out"),
    "method": ([*GIVEN, "--data", "suite.yaml", "--out", "g.json", "--method", "layer_gate"], "'layer_gates'"),
    "rule": ([*GIVEN, "--data", "suite.yaml", "--out", "g.json", "--rule", "tsv"], "unknown merging rule 'tsv'.*tsv_m"),
    "sum": ([*GIVEN, "--data", "suite.yaml", "--out", "g.json", "--rule", "slerp_none"], "unknown merging rule"),
    "images": ([*GIVEN, "--data", "suite.yaml", "--out", "g.json", "--images", "0"], "images must be at least 1"),
    "a file": ([*GIVEN, "--data", "suite.yaml", "--out", "all.yaml"], "all.yaml exists"),
    "a folder": ([*GIVEN, "--data", "suite.yaml", "--out", "all.yaml/g.json"], "all.yaml"),
    "a task": ([*GIVEN[:2], "x", "--data", "suite.yaml", "--out", "g.json"], "NAME=VALUE, not 'x'"),
    "a loader": (
        [*GIVEN[:1], f"x={zoo.base_path()}", "--data", "suite.yaml", "--out", "g.json"],
        "unknown loader 'id/x'",
    ),
    "no file": ([*GIVEN, "--data", "suit.yaml", "--out", "g.json"], "suit.yaml"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:task 'x' equals the base")
def test_what_cannot_be_learnt_is_said_first(case, tmp_path, monkeypatch, capsys):
    from lightning.pytorch import Trainer

    monkeypatch.setattr(Trainer, "fit", lambda *_: pytest.fail("it began to learn"))
    words, message = REFUSED[case]
    with pytest.raises(SystemExit) as stopped:
        main(["learn", *words])
    assert re.search(f"(?s){message}", f"{stopped.value} {capsys.readouterr().err}")
    assert {path.name for path in tmp_path.iterdir()} == {"all.yaml", "suite.yaml"}

from lwptv_lightning import MergeRecipe
from lwptv_lightning.cli import main

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


def test_learnt_coefficients_are_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all.yaml").write_text(CONFIGURATION)
    main(["learn", "--config", "all.yaml", "--out", "learnt.json"])
    recipe = MergeRecipe.from_json(tmp_path / "learnt.json")
    (row,) = recipe.rule.coefficients.values()
    assert len(row) == 5
    assert all(0 < abs(value - 0.2) < 0.03 for value in row)  # Adam's steps are as long as its rate at most
    assert {path.name for path in tmp_path.iterdir()} == {"all.yaml", "learnt.json"}

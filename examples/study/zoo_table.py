"""How good the models of a zoo are: what a zoo must show before anything is concluded from it."""

from collections.abc import Mapping

from torch.utils.data import DataLoader

from lwptv_lightning import MergeModule, MergeRecipe
from lwptv_lightning.report import markdown_table
from lwptv_lightning.search import sweep
from lwptv_lightning.zoo.demo import quiet_lightning, quiet_trainer

COEFFICIENTS = (0.15, 0.3)


def zoo_table(module: MergeModule, loaders: Mapping[str, DataLoader]) -> str:
    """Return the accuracy of the base, of each expert and of task arithmetic: on average and on every set."""
    vectors = module.vectors
    candidates = {"base": {name: vectors.base(name) for name in vectors.names}}
    for task in vectors.tasks:
        candidates[f"expert {task}"] = {name: vectors.expert(task, name) for name in vectors.names}
    for coefficient in COEFFICIENTS:
        candidates[f"task_arithmetic x {coefficient:g}"] = MergeRecipe("task_arithmetic", coefficient)
    with quiet_lightning():
        result = sweep(quiet_trainer(), module, candidates, loaders)
    figures = {name: result.figures(name) for name in candidates}
    columns = sorted(figures["base"], key=lambda column: not column.endswith("/avg"))
    return markdown_table(
        ["model", *columns],
        [[name, *(f"{100 * row[column]:.1f}" for column in columns)] for name, row in figures.items()],
    )

"""`MergeReport`: write what a validation of merged models found to a folder."""

from __future__ import annotations

from math import isfinite, nan
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from lwptv_lightning.callbacks.log_picture import log_picture
from lwptv_lightning.callbacks.online_merge import OnlineMerge
from lwptv_lightning.callbacks.prune_and_merge import PruneAndMerge
from lwptv_lightning.evaluation import MergeModule, callbacks_of, no_fractions, on_rank_zero
from lwptv_lightning.merging import PruningPlan
from lwptv_lightning.registry import DOMAINS, LoaderName, printable, require_kind
from lwptv_lightning.report import (
    RECIPE,
    REPORT,
    RESULTS,
    ReportFolder,
    ResultRow,
    ResultTable,
    literal,
    plot_id_ood,
    plot_saliency,
    print_table,
    print_text,
    room_of,
)

_TITLE = "# Merged models over ID and OOD loaders"
_PICTURES = ("saliency.png", "id_ood.png")


class MergeReport(Callback):
    """Write a table after each validation, with the loaders' names, to files, and print it.

    Every validation (or test) by the trainer adds a row, in a fit with `OnlineMerge` one with the figures that it logs.
    A rule that works on matrices says how many tensors it treated so, in print and in the report. The folder holds
    ``report.md``, ``results.csv``, ``recipe.json`` (of the last merge), ``saliency.png`` where layers were pruned, and
    ``id_ood.png`` where there are ID and OOD loaders. Pictures also go to the trainer's loggers that can hold them:
    TensorBoard, Weights & Biases and MLflow. Figures get there by themselves, as all that is logged. Each file is whole
    or as it was; files of an earlier report are replaced.

    Args:
        folder: Where to write; made where it does not exist.
        console: Where to print; standard output by default.
        overwrite: Whether to replace files of these names that no report wrote, too.

    Raises:
        FileExistsError: There is such a file, and ``overwrite`` is false; before anything is evaluated.
        OSError: Nothing can be written there.

    Example:
        >>> MergeReport("out").table.rows
        []
    """

    quiet = False
    """Whether nothing is printed without a console, as where a command prints the table itself."""

    def __init__(self, folder: str | Path, console: Console | None = None, *, overwrite: bool = False) -> None:
        require_kind("folder", folder, str | Path, "a path")
        self.folder = Path(folder)
        self.table = ResultTable()
        self._console = console
        self._files = ReportFolder(self.folder, _TITLE, (REPORT, RESULTS, RECIPE, *_PICTURES), overwrite=overwrite)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that the files can be written, and are no other's."""
        on_rank_zero(trainer, self._files.require_own)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row and write the files, unless this is the sanity check."""
        metrics = {} if trainer.sanity_checking else trainer.callback_metrics
        logged = {name.removeprefix("merged/"): float(value) for name, value in metrics.items()}
        figures = {name: value for name, value in logged.items() if _is_figure(name)}
        if not figures:
            return
        recipe, plan = None, None
        if isinstance(pl_module, MergeModule):
            recipe, plan = pl_module.installed or pl_module.recipe, pl_module.plan
        name = type(pl_module).__name__ if recipe is None else recipe.describe()
        if trainer.state.fn == TrainerFn.FITTING:
            name += f", epoch {trainer.current_epoch}"
        plain = {
            name for module in _merged(trainer, pl_module) for name in no_fractions(module.metrics.named(), figures)
        }
        self.table.rows.append(ResultRow(name, figures, plain=plain))
        console = self._console or Console(quiet=self.quiet)
        treatment = _treatment(trainer, pl_module)
        with self._files.writing() as folder:
            report = f"{_TITLE}\n\n{self.table.markdown()}\n"
            if treatment:
                report += f"\n{literal(f'The last {treatment}.')}\n"
            (folder / REPORT).write_text(report, encoding="utf-8")
            (folder / RESULTS).write_text(self.table.csv(), encoding="utf-8")
            if recipe is not None:
                (folder / RECIPE).write_text(recipe.to_json() + "\n", encoding="utf-8")
            drawn = [picture.name for picture in self._draw(plan, folder)]
        print_table(self.table.rich(width=room_of(console)), console)
        if treatment:
            print_text(f"The {treatment}.", console)
        for name in drawn:
            for logger in trainer.loggers:
                log_picture(logger, self.folder / name, trainer.global_step)
        print_text(f"Report written to {printable(self.folder)}", console)

    on_test_end = on_validation_end

    def _draw(self, plan: PruningPlan | None, folder: Path) -> list[Path]:
        saliency, id_ood = _PICTURES
        pictures = [] if plan is None else [plot_saliency(plan, folder / saliency)]
        averages = [
            nan if name in row.plain else row.figures.get(name, nan)
            for row in self.table.rows
            for name in ("id/avg", "ood/avg")
        ]
        if all(map(isfinite, averages)):
            pictures.append(plot_id_ood(self.table.rows, folder / id_ood))
        return pictures


def _is_figure(name: str) -> bool:
    """Tell whether something was logged for a loader or an average of some, not only under a domain's own name."""
    parsed = LoaderName.of_figure(name)
    return parsed.domain in DOMAINS and bool(parsed.name)


def _treatment(trainer: Trainer, pl_module: LightningModule) -> str | None:
    """Return how many tensors the rule of what was evaluated did its own with, whoever merged it."""
    found = [module.treatment for module in _merged(trainer, pl_module)]
    found += [callback.treatment for callback in callbacks_of(trainer) if isinstance(callback, PruneAndMerge)]
    return next(filter(None, found), None)


def _merged(trainer: Trainer, pl_module: LightningModule) -> list[MergeModule]:
    """Return the modules whose figures are logged."""
    merged = [callback.module for callback in callbacks_of(trainer) if isinstance(callback, OnlineMerge)]
    return [*merged, pl_module] if isinstance(pl_module, MergeModule) else merged

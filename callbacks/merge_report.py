"""`MergeReport`: write what a validation of merged models found to a folder."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from lwptv_lightning.callbacks.log_picture import log_picture
from lwptv_lightning.callbacks.online_merge import OnlineMerge
from lwptv_lightning.callbacks.prune_and_merge import PruneAndMerge
from lwptv_lightning.callbacks.report_controls import Controls, require_controls
from lwptv_lightning.callbacks.report_findings import TITLE, Gathered, is_figure, sets_of
from lwptv_lightning.evaluation import MergeModule, callbacks_of, loaders_of, no_fractions, on_rank_zero, stage_of
from lwptv_lightning.registry import printable, require_kind
from lwptv_lightning.report import (
    ReportFolder,
    ResultTable,
    SetAbout,
    identity_of,
    make_report,
    print_table,
    print_text,
    report_folder,
    room_of,
)

_PICTURES = ("saliency.png", "id_ood.png")
"""Those that stand beside the report, too, and go to loggers."""


class MergeReport(Callback):
    """Write a report after each validation, with the loaders' names, and print its table.

    Every validation (or test) by the trainer adds a row, in a fit with `OnlineMerge` one with the figures that it logs.
    A rule that works on matrices says how many tensors it treated so, in print and in the report. The folder holds
    ``report.html``, one page that needs nothing else, ``report.md``, ``results.csv``, ``recipe.json`` (of the last
    merge), and in ``figures/`` each figure as PNG, SVG and CSV; ``saliency.png``, where layers were pruned, and
    ``id_ood.png``, where there are ID and OOD loaders, also stand beside the report. These two go to the trainer's
    loggers that can hold pictures: TensorBoard, Weights & Biases and MLflow. Figures get there by themselves, as all
    that is logged. Each file is whole or as it was.

    The report of another run, of other checkpoints, with another recipe or on other sets, is not replaced unasked, and
    neither is a file that no report wrote. That is known before anything is evaluated, and so is a folder that cannot
    be written; a fit whose folder fails later goes on: it warns once, and prints the table.

    For its fingerprints and figures, a report reads all checkpoints about three times, in a fit only once.

    Args:
        folder: Where to write; made where it does not exist.
        console: Where to print; standard output by default.
        overwrite: Whether to replace another run's report, and files of these names that no report wrote.
        controls: Whether to evaluate what a merge is to be compared with, on the same loaders, after each validation,
            or once when a fit ends: the base, every expert, and of a recipe that prunes the same merge without pruning
            and ten with random masks. The report then has paired differences with intervals. That costs as much as
            ``13 + T`` further validations of T tasks, several models in one pass over the data, and the memory of up to
            16 models. One process alone can do it, with top-1 accuracy.

    Raises:
        FileExistsError: There is such a file, and ``overwrite`` is false; before anything is evaluated.
        OSError: Nothing can be written there.
        ValueError: Controls are asked for where they cannot be measured; before anything is evaluated.

    Example:
        >>> MergeReport("out").table.rows
        []
    """

    quiet = False
    """Whether nothing is printed without a console, as where a command prints the table itself."""

    def __init__(
        self, folder: str | Path, console: Console | None = None, *, overwrite: bool = False, controls: bool = False
    ) -> None:
        require_kind("folder", folder, str | Path, "a path")
        require_kind("controls", controls, bool, "True or False")
        self.folder = Path(folder)
        self.table = ResultTable()
        self.controls = controls
        self._console = console
        self._overwrite = overwrite
        self._gathered: Gathered | None = None
        self._has_warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that the files can be written, and are no other's."""
        on_rank_zero(trainer, lambda: self._require_own(trainer, pl_module, stage))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that the report that is there is of these sets, and that controls can be measured."""
        if trainer.state.fn == TrainerFn.FITTING:
            return
        on_rank_zero(trainer, lambda: self._require_same_sets(trainer, pl_module))
        if self.controls:
            require_controls(trainer, pl_module, loaders_of(trainer, stage_of(trainer)))

    on_test_start = on_validation_start

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that controls can be measured."""
        if self.controls:
            callback = _online(trainer)
            if callback is None:
                raise ValueError(
                    "MergeReport: controls=True needs OnlineMerge in a fit: nothing else merges what is trained there."
                )
            require_controls(trainer, callback.module, callback.loaders)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row and write the files, unless this is the sanity check."""
        metrics = {} if trainer.sanity_checking else trainer.callback_metrics
        logged = {name.removeprefix("merged/"): float(value) for name, value in metrics.items()}
        figures = {name: value for name, value in logged.items() if is_figure(name)}
        if not figures:
            return
        gathered, fitting = self._known(trainer, pl_module), trainer.state.fn == TrainerFn.FITTING
        own, online = pl_module if isinstance(pl_module, MergeModule) else None, _online(trainer)
        merged = online.module if own is None and online is not None else own
        name = type(pl_module).__name__ if own is None else (own.installed or own.recipe).describe()
        if fitting:
            name += f", epoch {trainer.current_epoch}"
        plain = {
            each for module in _merged(trainer, pl_module) for each in no_fractions(module.metrics.named(), figures)
        }
        treatment = _treatment(trainer, pl_module)
        gathered.add(name, figures, plain, merged)
        gathered.look_at(trainer, merged, treatment, fitting)
        if not fitting:
            gathered.sets = sets_of(trainer)
            if self.controls and own is not None:
                # What was measured is on the disk, whatever becomes of the controls.
                self._write(trainer, gathered, fitting=False)
                loaders = loaders_of(trainer, stage_of(trainer))
                gathered.controls = Controls.measured(trainer, own, name, loaders)
        self._publish(trainer, gathered, treatment, fitting)

    on_test_end = on_validation_end

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the controls of what was trained."""
        callback = _online(trainer)
        if not self.controls or callback is None or trainer.interrupted:
            return
        gathered, module = self._known(trainer, pl_module), callback.module
        name = f"{type(pl_module).__name__}, end of fit"
        with callback.merged_now(trainer) as vectors:
            gathered.controls = Controls.measured(trainer, module, name, callback.loaders, vectors)
        gathered.add(name, gathered.controls.result.figures(name), set(), module)
        treatment = _treatment(trainer, pl_module)
        gathered.look_at(trainer, module, treatment, fitting=True)
        self._publish(trainer, gathered, treatment, fitting=True)

    def _known(self, trainer: Trainer, pl_module: LightningModule) -> Gathered:
        """Return what was gathered; what tells the run is found where it begins, and stays."""
        if self._gathered is None:
            self._gathered = Gathered.of(trainer, pl_module)
        return self._gathered

    def _require_own(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        gathered = self._known(trainer, pl_module)
        if stage == "fit":
            online = _online(trainer)
            gathered.know_sets([] if online is None else [SetAbout(name) for name in online.loaders])
        self._files(gathered).require_own()

    def _require_same_sets(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gathered = self._known(trainer, pl_module)
        gathered.know_sets(sets_of(trainer))
        self._files(gathered).require_own()

    def _files(self, gathered: Gathered) -> ReportFolder:
        # An evaluation's loaders are not there yet when it is set up.
        run = identity_of(gathered.run) if gathered.knows_sets else None
        return report_folder(
            self.folder, TITLE, run, overwrite=self._overwrite, beside=_PICTURES, option="MergeReport(overwrite=True)"
        )

    def _publish(self, trainer: Trainer, gathered: Gathered, treatment: str | None, fitting: bool) -> None:
        """Write the files, and print the table, whatever becomes of the files."""
        self.table.rows[:] = gathered.table
        console = self._console or Console(quiet=self.quiet)
        failed: OSError | None = None
        try:
            drawn = self._write(trainer, gathered, fitting=fitting)
        except OSError as error:
            drawn, failed = None, error
        print_table(self.table.rich(width=room_of(console)), console)
        if treatment:
            print_text(f"The {treatment}.", console)
        if failed is not None:
            raise failed
        if drawn is None:
            return
        for name in drawn:
            for logger in trainer.loggers:
                log_picture(logger, self.folder / name, trainer.global_step)
        print_text(f"Report written to {printable(self.folder)}", console)

    def _write(self, trainer: Trainer, gathered: Gathered, *, fitting: bool) -> list[str] | None:
        """Write the files and return the names of the pictures beside them; None where a fit's folder failed."""
        try:
            with self._files(gathered).writing() as folder:
                drawn = [f"{name}.png" for name in make_report(gathered.findings(), folder)]
                beside = [name for name in _PICTURES if name in drawn]
                for name in beside:
                    shutil.copyfile(folder / "figures" / name, folder / name)
        except OSError as error:
            if not fitting:
                raise
            if not self._has_warned:
                warnings.warn(f"MergeReport: no report was written, training goes on. {error}", stacklevel=2)
            self._has_warned = True
            return None
        return beside


def _online(trainer: Trainer) -> OnlineMerge | None:
    """Return the callback that merges what is trained, the last of several."""
    found = [callback for callback in callbacks_of(trainer) if isinstance(callback, OnlineMerge)]
    return found[-1] if found else None


def _treatment(trainer: Trainer, pl_module: LightningModule) -> str | None:
    """Return how many tensors the rule of what was evaluated did its own with, whoever merged it."""
    found = [module.treatment for module in _merged(trainer, pl_module)]
    found += [callback.treatment for callback in callbacks_of(trainer) if isinstance(callback, PruneAndMerge)]
    return next(filter(None, found), None)


def _merged(trainer: Trainer, pl_module: LightningModule) -> list[MergeModule]:
    """Return the modules whose figures are logged."""
    merged = [callback.module for callback in callbacks_of(trainer) if isinstance(callback, OnlineMerge)]
    return [*merged, pl_module] if isinstance(pl_module, MergeModule) else merged

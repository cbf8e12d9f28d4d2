"""``lwptv tune``: which rule, score, ratio and coefficient for the models of a configuration file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwptv_lightning.cli.configuration import nearest_below
from lwptv_lightning.cli.configured import configured, leave_reports_out, take_statistics
from lwptv_lightning.cli.results import Result
from lwptv_lightning.cli.running import running
from lwptv_lightning.registry import ConfigurationError, leads, printable, shown

if TYPE_CHECKING:
    from lwptv_lightning.report import Findings
    from lwptv_lightning.search import SearchSpace, TuneResult

EXAMPLE = "lwptv tune --config suite.yaml --budget 10 --tune.rules '[task_arithmetic]' --tune.masks 2 --out tuned"

OUT = "tuned"
MODEL, STORE = "model", ".candidates"
_SEARCHED = ("strategy", "choice", "masks", "recalibrate", "seed", "at_once")
"""Arguments of `tune` that stand beside those of a `SearchSpace`."""


def run(options: argparse.Namespace) -> Result:
    """Search rules, ratios and scales; write the chosen recipe, model and report."""
    from lwptv_lightning.evaluation import on_rank_zero
    from lwptv_lightning.search import findings_of, install_chosen_, tune

    with configured("tune", options.arguments, complete=_asked) as made:
        space, given = _asked(made.config)
        module, suite = made.model, made.datamodule
        place = _Place(Path(made.config["out"] or OUT), made.config["overwrite"])
        # Of several processes the first one begins, and writes before the others are there.
        identity = place.require(made) if leads() else ""
        take_statistics(made, *space.recipes().values())
        leave_reports_out(made)
        given |= {"space": space, "store": place.folder / STORE}
        with running(made.trainer, shown=False):  # sweeps show their own progress
            found = tune(made.trainer, module, suite.validation, suite.loaders, **given)
            install_chosen_(module, found)
            on_rank_zero(made.trainer, lambda: place.write(findings_of(found, module, run=identity)))
            module.save_merged(place.model, heads=bool(module.heads), overwrite=True)
        said = [*found.recommendation, f"Recipe, merged model and report are in {place.folder}"]
        return Result(_values(found, place), [found.table, *map(printable, said)])


@dataclass(frozen=True)
class _Place:
    """Where all is written."""

    folder: Path
    overwrite: bool

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    def require(self, made: Any) -> str:
        """Return what tells this run from others; raise where its files cannot be written, or are another's."""
        from lwptv_lightning.merging import require_output
        from lwptv_lightning.report import REPORT, identity_of, report_folder
        from lwptv_lightning.search import TITLE

        base, tasks = made.model.vectors.fingerprints()
        sets = [*made.datamodule.loaders], [*made.datamodule.validation]
        identity = identity_of({"base": base, "tasks": tasks, "sets": sets})
        report_folder(self.folder, TITLE, identity_of(identity), overwrite=self.overwrite).require_own()
        # A model beside the report of this run is this run's.
        require_output(self.model, overwrite=self.overwrite or (self.folder / REPORT).is_file())
        return identity

    def write(self, findings: Findings) -> None:
        """Write the report, with the recipe."""
        from lwptv_lightning.report import write_report

        write_report(findings, self.folder, overwrite=self.overwrite)


def _values(found: TuneResult, place: _Place) -> dict[str, Any]:
    """Return what was found as plain values."""
    differences = {
        other: {over: {"value": each.value, "low": each.low, "high": each.high} for over, each in own.items()}
        for other, own in found.differences.items()
    }
    return {
        "rows": found.table.values(),
        "recipe": found.recipe.to_dict(),
        "chosen": dict(found.chosen),
        "choice": found.choice,
        "recommendation": list(found.recommendation),
        "differences": differences,
        "candidates": len(found.candidates),
        "searched": found.searched,
        "notes": list(found.notes),
        "seconds": found.seconds,
        "out": place.folder,
        "saved": place.model,
    }


def _asked(config: Any) -> tuple[SearchSpace, dict[str, Any]]:
    """Return what is tried, and the other arguments of `tune`.

    Raises:
        ConfigurationError: A key is unknown, or its value cannot be taken.
    """
    from lwptv_lightning.registry import require_known, require_whole
    from lwptv_lightning.search import CHOICES, STRATEGIES, Budget, SearchSpace

    section = config["tune"] or {}
    if not isinstance(section, Mapping):
        raise ConfigurationError("tune", f"expected a mapping, such as {{rules: [ties]}}, not {shown(section)}.")
    own = [field.name for field in fields(SearchSpace)]
    for name in section:
        if name not in (known := (*own, *_SEARCHED, "budget")):
            raise ConfigurationError(f"tune.{name}", f"unknown key.{nearest_below('tune', name, known)}")
    said = {name: value for name, value in section.items() if value is not None}
    space = {name: value for name, value in said.items() if name in own}
    for name in space:
        with _naming(f"tune.{name}"):
            SearchSpace(**{each: value for each, value in space.items() if each in (name, "rules")})
    given = {name: value for name, value in said.items() if name in _SEARCHED}
    if config["recalibrate"] is not None:
        given["recalibrate"] = config["recalibrate"]
    checks: dict[str, Mapping[str, Any]] = {"strategy": STRATEGIES, "choice": CHOICES}
    for name, value in given.items():
        with _naming(f"tune.{name}"):
            if name in checks:
                require_known(name, value, checks[name])
            elif name == "recalibrate":
                if not isinstance(value, bool):
                    raise TypeError(f"recalibrate must be true or false, not {shown(value)}.")
            else:
                require_whole(name, value, 1 if name == "at_once" else 0)
    budget = config["budget"] if config["budget"] is not None else said.get("budget", 200)
    with _naming("budget" if config["budget"] is not None else "tune.budget"):
        given["budget"] = Budget.of(budget)
    return SearchSpace(**space), given


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Let an error of a value say under which key it stands."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ConfigurationError(key, str(error)) from error

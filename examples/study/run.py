"""Measure every method on every zoo, candidate by candidate; it goes on where it was stopped.

    python examples/study/run.py --cache DIR --out examples/study/results

A candidate takes 2 s on an idle core. With ``--budget 0`` the tables are written of what is there.
Finished candidates lie in ``DIR/outcomes``, sample by sample, and learnt coefficients in ``DIR/learnt``. The zoos are
built in DIR where they are missing. Choices are made on validation samples of the ID sets alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import methods
import tables
import torch
from claims import SEEDS
from comparisons import Comparisons
from measurement import Measurement
from outcomes import Store
from subject import open_subject

from lwptv_lightning.files import write_whole

ZOOS = ("shipped", "seed1", "seed2", "styles", "vit")
ORDER = (
    *((stage, zoo) for zoo in SEEDS for stage in ("core", "gates")),
    *((stage, zoo) for zoo in ("styles", "vit") for stage in ("core", "gates")),
    *((stage, "shipped") for stage in methods.STAGES),
    *((stage, zoo) for stage in methods.STAGES for zoo in ZOOS),
)
"""What is measured first, of what there is not time for."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="where zoos, outcomes and coefficients are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"), help="where to write the CSVs")
    parser.add_argument("--zoos", nargs="+", choices=ZOOS, default=ZOOS, help="the tables hold these alone")
    parser.add_argument("--stages", nargs="+", choices=methods.STAGES, default=methods.STAGES, help="what to measure")
    parser.add_argument("--budget", type=float, help="minutes after which nothing new begins")
    parser.add_argument("--size", type=int, default=methods.IMAGES, help="test images of each set")
    parser.add_argument("--validation", type=int, default=methods.VALIDATION, help="validation images of each ID set")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so many that results are the same on every machine of a kind
    until = time.monotonic() + 60 * options.budget if options.budget is not None else float("inf")
    opened: dict[str, Measurement] = {}
    for stage, zoo in dict.fromkeys(ORDER):
        if stage in options.stages and zoo in options.zoos:
            if zoo not in opened:
                opened[zoo] = open_measurement(zoo, options, until)
            measure(opened[zoo], stage)
    write([opened[zoo] for zoo in ZOOS if zoo in opened], options)


def open_measurement(zoo: str, options: argparse.Namespace, until: float) -> Measurement:
    subject = open_subject(zoo, options.cache, options.size, options.validation, len(methods.DRAWS))
    return Measurement(subject, Store(options.cache / "outcomes" / zoo), options.cache / "learnt" / zoo, until)


def measure(measurement: Measurement, stage: str) -> None:
    """Measure the fronts of a stage, and say which are new."""
    measurement.references()
    for front in methods.fronts(stage):
        began = time.monotonic()
        if points := measurement.of(front):
            if (seconds := time.monotonic() - began) > 1:
                print(f"{measurement.subject.name}: {front.name}, {len(points)} scales, {seconds:.0f} s", flush=True)
        else:
            print(f"{measurement.subject.name}: no time for {front.name}", flush=True)


def write(measurements: Sequence[Measurement], options: argparse.Namespace) -> None:
    """Write the two tables, of all that is stored."""
    measured = [found for each in measurements if (found := tables.Measured.of(each)) is not None]
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "results.csv", tables.results(measured))
    compare = Comparisons(options.cache / "comparisons")
    write_whole(options.out / "comparisons.csv", tables.comparisons(measured, compare))
    print(f"Wrote results.csv and comparisons.csv to {options.out}", flush=True)


if __name__ == "__main__":
    main()

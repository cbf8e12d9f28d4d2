"""How time and memory grow with the number of tasks, and with the number of parameters.

    python benchmarks/growth.py --json growth.json
    python benchmarks/growth.py --model vit_tiny_patch16_224 --tasks 2 4 --models vit_tiny_patch16_224 --rounds 1

Measured as by engine.py, whose words the tables use. Where time grows in proportion to the input, GB/s stays the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from cases import Inputs, cases
from inputs import environment, folder_or_temporary, markdown_lines, progress, write_checkpoints, write_json
from timing import figures, peak_beyond, time_in_turn

RULES = ("task_arithmetic", "ties", "dare_ties", "breadcrumbs", "consensus_ta")
MODELS = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224")
TIMES = ("what", "best s", "GB/s", "times floor")
MEMORY = ("peak MB", "result MB", "beyond MB")


def measure_model(folder: Path, model: str, tasks: int, rounds: int) -> list[dict[str, Any]]:
    inputs = Inputs(*write_checkpoints(folder, model, tasks))
    parameters = sum(header.numel for header in inputs.vectors.headers.values())
    about = {"model": model, "tasks": tasks, "parameters M": parameters / 1e6}
    measured = cases(RULES)
    progress(f"{model}, {tasks} tasks")
    rows = []
    for row in figures(time_in_turn(measured, inputs, rounds), inputs):
        case = measured.get(row["what"])
        memory = dict.fromkeys(MEMORY) if case is None else peak_beyond(case, inputs)
        rows.append(about | {name: row[name] for name in TIMES} | memory)
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print the rows, those of one case together."""
    names = list(dict.fromkeys(row["what"] for row in rows))
    print(f"\n{title}\n\n{markdown_lines(sorted(rows, key=lambda row: names.index(row['what'])))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch32_224", help="for the growing number of tasks")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--tasks-of-models", type=int, default=4, help="for the growing number of parameters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="keeps the inputs, and takes those that are there")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with folder_or_temporary(options.folder) as folder:
        by_tasks = [
            row for tasks in options.tasks for row in measure_model(folder, options.model, tasks, options.rounds)
        ]
        by_parameters = [
            row
            for model in options.models
            for row in measure_model(folder, model, options.tasks_of_models, options.rounds)
        ]
    about = environment() | {"rounds": options.rounds}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    show("More tasks", by_tasks)
    show("More parameters", by_parameters)
    write_json(options.json, {**about, "by_tasks": by_tasks, "by_parameters": by_parameters})


if __name__ == "__main__":
    main()

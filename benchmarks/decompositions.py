"""What decomposing a matrix takes, by the SVD in float64 and as the library does it, and what remembering it saves.

    python benchmarks/decompositions.py
    python benchmarks/decompositions.py --shapes 64x256 --rounds 1 --rules tsv_m

The merges are of the zoo's five experts, by each rule at two scales with and without half of the layers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from inputs import markdown_lines, progress

from lwptv_lightning import MergeRecipe, merge, zoo
from lwptv_lightning.engine import Execution, Memo
from lwptv_lightning.functional import decompose

SHAPES = ("64x64", "192x64", "64x256", "768x768", "768x3072", "3072x768", "1024x1024")
RULES = ("tsv_m", "iso_c", "iso_cts", "score", "dc_merge")


def best(rounds: int, function: Callable[[], object]) -> float:
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return min(taken)


def of_shape(shape: str, rounds: int) -> dict[str, object]:
    progress(shape)
    rows, columns = map(int, shape.split("x"))
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    singular = best(rounds, lambda: torch.linalg.svd(matrix.double(), full_matrices=False))
    library = best(rounds, lambda: decompose(matrix))
    values = torch.linalg.svdvals(matrix.double())
    error = float(((decompose(matrix).values - values).abs() / values).max())
    return {
        "matrix": shape,
        "SVD s": singular,
        "decompose s": library,
        "times as fast": singular / library,
        "error of a value": error,
    }


def of_merges(rules: list[str], rounds: int) -> list[dict[str, object]]:
    vectors, rows, shared = zoo.zoo_module().vectors, [], Execution(memo=Memo())

    def four(rule: str, execution: Execution | None = None) -> None:
        for scale, ratio in product((0.5, 1.0), (0.0, 0.5)):
            merge(vectors, MergeRecipe(rule, scale, ratio=ratio), execution=execution)

    for rule in rules:
        progress(rule)
        alone, first, again = (
            best(repeated, partial(four, rule, execution))
            for repeated, execution in ((rounds, None), (1, shared), (rounds, shared))
        )
        rows.append({"4 merges": rule, "each alone s": alone, "with a memo s": first, "with a full memo s": again})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="such as 768x3072")
    parser.add_argument("--rules", nargs="*", default=list(RULES))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(markdown_lines([of_shape(shape, options.rounds) for shape in options.shapes]), end="\n\n")
    if options.rules:
        print(markdown_lines(of_merges(options.rules, options.rounds)))


if __name__ == "__main__":
    main()

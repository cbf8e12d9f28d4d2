"""What a sweep over many recipes takes, beside as many validations, and whether it finds the same figures.

    python benchmarks/sweep_on_zoo.py                       # 180 recipes, 5 images in each of the zoo's 15 sets
    python benchmarks/sweep_on_zoo.py --sizes 5 20 100      # several sizes

Of the validations ten are timed, and the time of all is extrapolated. Both run in one process with one thread of torch,
by turns, and are timed by the processor, so that what else the machine does counts little. With few images a validation
is mostly merging and what a trainer does around it, which a sweep shares; with many it is the model, which is run for
each recipe either way.
"""

import argparse
import time
from itertools import product

import torch

from lwptv_lightning import MergeRecipe, zoo
from lwptv_lightning.search import sweep
from lwptv_lightning.zoo.demo import quiet_lightning, quiet_trainer

RULES = ("task_arithmetic", "ties", "dare", "consensus_ta", "breadcrumbs")
RATIOS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
COEFFICIENTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
VALIDATED = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5], help="images in each set")
    parser.add_argument("--repeats", type=int, default=3, help="how often to time both; the fastest of each counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for size in options.sizes:
        measure(size, options.repeats)


def measure(size: int, repeats: int) -> None:
    module, sets = zoo.zoo_module(), zoo.loaders("test", size=size)
    chosen = product(RULES, RATIOS, COEFFICIENTS)
    recipes = {f"{rule} {ratio} {scale}": MergeRecipe(rule, scale, ratio=ratio) for rule, ratio, scale in chosen}
    some = list(recipes)[:: len(recipes) // VALIDATED][:VALIDATED]
    swept, validated, same = [], [], True
    with quiet_lightning():
        for _ in range(repeats):
            begin = time.process_time()
            found = sweep(quiet_trainer(), module, recipes, sets)
            swept.append(time.process_time() - begin)
            trainer = quiet_trainer()
            begin = time.process_time()
            figures = {}
            for name in some:
                module.recipe = recipes[name]
                parts = trainer.validate(module, sets, verbose=False)
                figures[name] = {key: value for part in parts for key, value in part.items()}
            validated.append((time.process_time() - begin) / len(some) * len(recipes))
            same &= all(_same(found.figures(name), figures[name]) for name in some)
    print(
        f"{len(recipes)} recipes, {len(sets)} sets of {size}: sweep {min(swept):.1f} s, "
        f"validations {min(validated):.1f} s, "
        f"{min(validated) / min(swept):.1f} times as long; figures {'the same' if same else 'DIFFER'}",
        flush=True,
    )


def _same(one: dict[str, float], other: dict[str, float]) -> bool:
    """Tell whether figures are the same; a logger holds them in float32."""
    return one.keys() == other.keys() and all(abs(one[name] - other[name]) < 1e-6 for name in one)


if __name__ == "__main__":
    main()

"""Time a merge on one process and, in the same run, divided over several that have the same cores between them.

python benchmarks/merge_on_processes.py --ranks 2 --rule ties

Synthetic checkpoints with the shapes of a timm model are written to a temporary folder first.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from inputs import write_checkpoints

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.engine import ALONE, Ranks


def timed(vectors: TaskVectors, recipe: MergeRecipe, ranks: Ranks, threads: int) -> float:
    torch.set_num_threads(threads)
    began = time.perf_counter()
    merge(vectors, recipe, ranks=ranks)
    return time.perf_counter() - began


def work(rank: int, folder: Path, options: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore")
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=options.ranks)
    ranks = Ranks.current()
    # Written before the processes began, so that each finds the files there.
    vectors = TaskVectors.open(*write_checkpoints(folder, options.model, options.tasks))
    recipe = MergeRecipe(options.rule)
    alone, together = [], []
    for _ in range(options.rounds):
        if rank == 0:
            alone.append(timed(vectors, recipe, ALONE, options.ranks * options.threads))
        dist.barrier()
        together.append(max(ranks.exchange(timed(vectors, recipe, ranks, options.threads))))
        dist.barrier()
    if rank == 0:
        one, several = min(alone), min(together)
        print(
            f"{options.model}, {options.tasks} tasks, {options.rule}: {one:.2f} s on 1 process of "
            f"{options.ranks * options.threads} threads, {several:.2f} s on {options.ranks} of {options.threads}: "
            f"{one / several:.2f} times as fast (best of {options.rounds}; "
            f"all: {' '.join(f'{a:.2f}/{t:.2f}' for a, t in zip(alone, together, strict=True))})"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--rule", default="ties")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as written:
        write_checkpoints(Path(written), given.model, given.tasks)
        torch.multiprocessing.spawn(work, (Path(written), given), nprocs=given.ranks)

"""Merge the zoo's experts and validate them on several processes, with exactly the figures of one.

python examples/multi_process.py --devices 2                     # Lightning starts the second process
torchrun --nproc-per-node 2 examples/multi_process.py            # torchrun starts both
srun --nodes 2 --ntasks-per-node 4 python examples/multi_process.py --devices 4 --nodes 2    # in a SLURM job

See docs/distributed.md for what is divided among the processes, and for models that one device cannot hold.
"""

import argparse
import os

from lightning.pytorch import Trainer

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, zoo


def main(devices: int = 1, nodes: int = 1, size: int = 150) -> dict[str, float]:
    vectors = TaskVectors.open(zoo.base_path(), zoo.expert_paths())
    module = MergeModule(zoo.create_model(), vectors, MergeRecipe("ties", ratio=0.5), heads=zoo.heads())
    # "ddp" stands for any number of processes; Lightning finds out by itself whether torchrun or SLURM started them.
    trainer = Trainer(
        accelerator="auto",
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
    )
    found = trainer.validate(module, zoo.loaders("test", size=size), verbose=False)
    figures = {name: figure for entry in found for name, figure in entry.items()}
    if trainer.is_global_zero:
        for name, figure in figures.items():
            print(f"{name:28} {100 * figure:5.1f} %")
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    parser.add_argument("--nodes", type=int, default=1)
    options = parser.parse_args()
    main(options.devices, options.nodes)

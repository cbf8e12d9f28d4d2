"""``lwptv verify``."""

import argparse
from pathlib import Path

from lwptv_lightning.cli import arguments
from lwptv_lightning.cli.from_config import fill_in
from lwptv_lightning.cli.results import Result
from lwptv_lightning.registry import parse_bytes

EXAMPLE = """lwptv verify merged.safetensors
lwptv verify merged.safetensors base.safetensors cats=cats.safetensors cars=cars.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("out", help="what lwptv wrote: a file, the index of its shards, or their folder")
    arguments.add_checkpoints(parser, required=False)
    parser.add_argument("--sample", type=int, metavar="N", help="make only N tensors again, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--device", help="where to compute, such as cuda; a device has its own rounding")
    parser.add_argument("--max-memory", metavar="SIZE", help="what the merge may hold in memory, such as 512MB")
    parser.add_argument(
        "--data-statistics", type=Path, metavar="FILE", help="what CollectDataStatistics wrote, for rules that need it"
    )


def run(options: argparse.Namespace) -> Result:
    """Check a merged file by its checksums and, with its inputs, by making it again."""
    import torch

    from lwptv_lightning.engine import Execution
    from lwptv_lightning.inspection import verification_text, verify
    from lwptv_lightning.merging import read_data_statistics

    fill_in(options)
    device = torch.device(arguments.usable_device("--device", options.device) or "cpu")
    memory = None if options.max_memory is None else parse_bytes("--max-memory", options.max_memory)
    execution = Execution(device=device, max_memory=memory)
    data = None if options.data_statistics is None else read_data_statistics(options.data_statistics)
    given = arguments.checkpoint_options(options)
    draw = {"sample": options.sample, "seed": options.seed}
    found = verify(options.out, options.base, data=data, execution=execution, **draw, **given)
    text = verification_text(found)
    return Result({"passed": found.passed, **vars(found)}, [text], found.passed)

"""`CollectDataStatistics`: what Fisher merging and RegMean need, collected in an ordinary ``trainer.validate``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lwptv_lightning.checkpoints import require_place, require_safetensors_path
from lwptv_lightning.evaluation import (
    MergeModule,
    StatisticsCollector,
    callbacks_of,
    loaders_of,
    on_rank_zero,
    owner_of,
    replicas_of,
    require_results_here,
)
from lwptv_lightning.merging import install_, installable, write_data_statistics


class CollectDataStatistics(Callback):
    """Run each task's own model over its own data and collect what a merging rule asks for.

    In the trainer of a `MergeModule` it takes the place of `PruneAndMerge`: while the loader ``id/<task>``, or
    ``id/<group>/<task>``, is validated the module holds that task's fine-tuned weights, so the figures are the experts'
    own; over every other loader it holds the base. Afterwards `statistics` is ready for ``merge(..., statistics=...)``
    or ``MergeModule(..., statistics=...)``, and the module's weights are what they were.

    Args:
        kind: ``"fisher"``: the exact diagonal Fisher information, by a backward pass for each class of each example,
            for the rule ``fisher``. ``"gram"``: the Gram matrices of linear layers' inputs, for the rule ``regmean``.
        samples: How many examples of each task to use, at least 1, of each of its loaders where it has several; with
            several processes the same ones as with one.
        file: A ``.safetensors`` file to write, for `lwptv_lightning.merging.read_data_statistics` and the command line.

    Attributes:
        statistics: Task to tensor name to a mean over the examples (``"fisher"``) or rows (``"gram"``).

    Raises:
        UnknownNameError: No such kind.
        ValueError: ``samples`` is below 1, or the file is called otherwise.

    Example:
        >>> CollectDataStatistics("gram", samples=64).statistics
        {}
    """

    installs_weights = True  # by this a `MergeModule` knows that it need not bring a callback that merges

    def __init__(self, kind: str, *, samples: int = 256, file: str | Path | None = None) -> None:
        self._collector = StatisticsCollector(kind, samples)
        if file is not None:
            require_safetensors_path(file)
        self.kind = kind
        self.samples = samples
        self.file = None if file is None else Path(file)
        self.statistics: dict[str, dict[str, Tensor]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Bring the callbacks in order, and refuse those whose weights would not be there."""
        if self.file is None:
            require_results_here(trainer, "the statistics that CollectDataStatistics writes to no file=...")
        else:
            on_rank_zero(trainer, partial(require_place, self.file))
        owner_of(trainer)
        for other in callbacks_of(trainer):
            merges = getattr(other, "installs_weights", False) or getattr(other, "place", None) == "measures"
            if merges and not isinstance(other, CollectDataStatistics):
                raise ValueError(
                    f"CollectDataStatistics runs each task's own model, and {type(other).__name__} a merged one: use "
                    "them in different trainers."
                )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that every task has its loader, and remember the module's weights."""
        if not isinstance(pl_module, MergeModule):
            raise TypeError(f"CollectDataStatistics works on a MergeModule, not on a {type(pl_module).__name__}.")
        loaders = loaders_of(trainer, "validate")
        pl_module.prepare(loaders)
        self._collector.begin(pl_module, loaders, replicas_of(trainer))
        model, names = pl_module.model, installable(pl_module.model, pl_module.vectors)
        owner = owner_of(trainer)
        owner.begin(trainer, pl_module, averaged=False)
        with owner.holding(model, names):
            install_(model, {name: pl_module.vectors.base(name) for name in names})

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Install the weights that belong to a loader at its first batch, then add the batch's share."""
        loader, batches = list(loaders_of(trainer, "validate").items())[dataloader_idx]
        self._collector.add(cast(MergeModule, pl_module), loader, batches, batch_idx, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average over all examples, of all processes, and write the file."""
        self.statistics = self._collector.statistics(partial(trainer.strategy.reduce, reduce_op="sum"))
        if self.file is not None:
            on_rank_zero(trainer, partial(write_data_statistics, self.statistics, self.file))


CollectStatistics = CollectDataStatistics
"""What the class was called once."""

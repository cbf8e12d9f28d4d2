"""`CollectDataStatistics`: what Fisher merging and RegMean need, collected in an ordinary ``trainer.validate``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lwptv_lightning.checkpoints import require_place, require_safetensors_path
from lwptv_lightning.evaluation import (
    MergeModule,
    callbacks_of,
    count_samples,
    fisher_diagonal,
    input_grams,
    inputs_of,
    loaders_of,
    naming_loader,
    on_rank_zero,
    owner_of,
    replicas_of,
    require_classified,
    require_results_here,
    share_of,
    take_samples,
)
from lwptv_lightning.functional import call_with, plain_name
from lwptv_lightning.merging import install_, installable, write_data_statistics
from lwptv_lightning.registry import (
    own_tasks,
    require_known,
    require_whole,
)


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
        require_known("kind of statistics", kind, ("fisher", "gram"))
        require_whole("samples", samples, 1)
        if file is not None:
            require_safetensors_path(file)
        self.kind = kind
        self.samples = samples
        self.file = None if file is None else Path(file)
        self.statistics: dict[str, dict[str, Tensor]] = {}
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._own: dict[str, str] = {}  # loader to the task that it is of
        self._passed: dict[str, int] = {}

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
        if self.kind == "fisher":
            pl_module.require_logits()
        self._own = own_tasks(loaders, pl_module.vectors.tasks)
        absent = [task for task in pl_module.vectors.tasks if task not in self._own.values()]
        if absent:
            raise ValueError(f"task {absent[0]!r} has no loader 'id/{absent[0]}'; each task needs its own data.")
        if self.kind == "fisher":
            pl_module.metric_choice.require_of_classes("Fisher information", pl_module.heads_for(self._own))
        for loader in self._own if replicas_of(trainer).size > 1 else ():
            if share_of(loaders[loader]) is None:
                raise ValueError(
                    f"loader {loader!r} has no sampler, so that several processes cannot tell which samples are the "
                    f"first {self.samples}; give a loader of a data set with a length, or use one process."
                )
        self._sums = {task: {} for task in pl_module.vectors.tasks}
        self._passed = dict.fromkeys(loaders, 0)
        model, names = pl_module.model, installable(pl_module.model, pl_module.vectors)
        owner = owner_of(trainer)
        owner.begin(trainer, pl_module, averaged=False)
        with owner.holding(model, names):
            install_(model, {name: pl_module.vectors.base(name) for name in names})

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Install the weights that belong to a loader at its first batch, then add the batch's share."""
        module = cast(MergeModule, pl_module)
        loader, batches = list(loaders_of(trainer, "validate").items())[dataloader_idx]
        own_task = self._own.get(loader)
        if batch_idx == 0:
            vectors = module.vectors
            read = vectors.base if own_task is None else partial(vectors.expert, own_task)
            install_(module.model, {name: read(name) for name in vectors.shared_names})
        if own_task is None:
            return
        with naming_loader(loader):
            inputs = inputs_of(module, batch)
        wanted = self._wanted(loader, batches, batch_idx, count_samples(inputs))
        if wanted or batch_idx == 0:
            # A process without an example of its own adds zeros, so that all processes sum up the same names.
            measured = self._measure(module, take_samples(inputs, 0, max(wanted, 1)), module.head_of(loader))
            sums = self._sums[own_task]
            for name, value in measured.items():
                sums[name] = sums.get(name, 0) + (value if wanted else value * 0)

    def _wanted(self, loader: str, batches: Any, batch_idx: int, size: int) -> int:
        """Return how many of a batch's samples, its first ones, are among those to use."""
        start = self._passed[loader]
        self._passed[loader] += size
        if (share := share_of(batches)) is not None:
            if (number := share.number(batch_idx)) is None:
                return 0
            start = share.start(number)
            if (taken := len(share.positions(number))) != size:
                raise ValueError(
                    f"loader {loader!r} makes {size} of {taken} samples of its data set; several processes cannot "
                    f"tell which are the first {self.samples}; use one process."
                )
        return max(0, min(size, self.samples - start))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average over all examples, of all processes, and write the file."""
        statistics = {}
        for task, sums in self._sums.items():
            total = {name: trainer.strategy.reduce(sums[name], reduce_op="sum") for name in sorted(sums)}
            counts = {name: value for name, value in total.items() if name.endswith(".rows")}
            statistics[task] = {
                name: (value / counts[f"{name}.rows" if self.kind == "gram" else ".rows"]).float().cpu()
                for name, value in total.items()
                if name not in counts
            }
        self.statistics, self._sums = statistics, {}
        if self.file is not None:
            on_rank_zero(trainer, partial(write_data_statistics, self.statistics, self.file))

    def _measure(self, module: MergeModule, inputs: Any, head: str | None) -> dict[str, Tensor]:
        # Not compiled: such code may pass over hooks and other parameters.
        with torch.compiler.set_stance("force_eager"):
            return self._measured(module, inputs, head)

    def _measured(self, module: MergeModule, inputs: Any, head: str | None) -> dict[str, Tensor]:
        if self.kind == "gram":
            with torch.no_grad(), input_grams(module.model) as grams:
                module(inputs, head)
            return grams
        parameters = {f"model.{name}": value for name, value in module.model.named_parameters()}

        def logits(values: Mapping[str, Tensor], example: Any) -> Tensor:
            return require_classified(call_with(module, values, example, head), module.model, dense=False)

        sums = fisher_diagonal(logits, parameters, inputs)
        count = torch.tensor(float(count_samples(inputs)), device=module.device)
        return {plain_name(name.removeprefix("model.")): value for name, value in sums.items()} | {".rows": count}


CollectStatistics = CollectDataStatistics
"""What the class was called once."""

"""`StatisticsCollector`: each task's own model run over its own data, and what of that a merging rule asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.evaluation.data_statistics import fisher_diagonal, input_grams
from lwptv_lightning.evaluation.inputs import count_samples, inputs_of, take_samples
from lwptv_lightning.evaluation.interface import naming_loader
from lwptv_lightning.evaluation.labels import require_classified
from lwptv_lightning.evaluation.module import MergeModule
from lwptv_lightning.evaluation.shares import Replicas, share_of
from lwptv_lightning.functional import call_with, plain_name
from lwptv_lightning.merging import install_
from lwptv_lightning.registry import own_tasks, require_known, require_whole

KINDS = ("fisher", "gram")
SAMPLES = 256
"""How many samples of a loader are used where nothing says so."""


class StatisticsCollector:
    """Collects over the batches of an evaluation; it changes the model's weights, which another puts back.

    While a loader of a task is gone through the model holds that task's fine-tuned weights, over every other the base.

    Args:
        kind: ``"fisher"`` or ``"gram"``.
        samples: How many samples of each task's loader to use, at least 1.

    Raises:
        UnknownNameError: No such kind.
        ValueError: ``samples`` is below 1.

    Example:
        >>> StatisticsCollector("gram").samples
        256
    """

    def __init__(self, kind: str, samples: int = SAMPLES) -> None:
        require_known("kind of statistics", kind, KINDS)
        require_whole("samples", samples, 1)
        self.kind = kind
        self.samples = samples
        self._own: dict[str, str] = {}  # loader to the task that it is of
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._passed: dict[str, int] = {}

    def require_loaders(self, module: MergeModule, loaders: Mapping[str, Any]) -> None:
        """Raise unless every task has a loader, whose samples are of classes where that matters.

        Raises:
            ValueError: A task has no loader, or nothing makes logits of classes for Fisher information.
        """
        if self.kind == "fisher":
            module.require_logits()
        own = own_tasks(loaders, module.vectors.tasks)
        absent = [task for task in module.vectors.tasks if task not in own.values()]
        if absent:
            raise ValueError(f"task {absent[0]!r} has no loader 'id/{absent[0]}'; each task needs its own data.")
        if self.kind == "fisher":
            module.metric_choice.require_of_classes("Fisher information", module.heads_for(own))

    def begin(self, module: MergeModule, loaders: Mapping[str, Any], replicas: Replicas) -> None:
        """Begin to collect over loaders, of which several processes have their shares.

        Raises:
            ValueError: As in `require_loaders`; or processes cannot tell which samples are the first.
        """
        self.require_loaders(module, loaders)
        self._own = own_tasks(loaders, module.vectors.tasks)
        for loader in self._own if replicas.size > 1 else ():
            if share_of(loaders[loader]) is None:
                raise ValueError(
                    f"loader {loader!r} has no sampler, so that several processes cannot tell which samples are the "
                    f"first {self.samples}; give a loader of a data set with a length, or use one process."
                )
        self._sums = {task: {} for task in module.vectors.tasks}
        self._passed = dict.fromkeys(loaders, 0)

    def add(self, module: MergeModule, loader: str, batches: Any, batch_idx: int, batch: Any) -> None:
        """Install the weights that belong to a loader at its first batch, then add the batch's share.

        Args:
            module: Whose model runs.
            loader: The loader's name.
            batches: The loader as it is evaluated.
            batch_idx: The batch's number in it.
            batch: The batch.
        """
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

    def statistics(self, total_of: Callable[[Tensor], Any]) -> dict[str, dict[str, Tensor]]:
        """Return the means over the examples, or rows, of all processes: task to tensor name to tensor.

        Args:
            total_of: Adds up a tensor over the processes, which all call this.
        """
        found = {}
        for task, sums in self._sums.items():
            total = {name: total_of(sums[name]) for name in sorted(sums)}
            counts = {name: value for name, value in total.items() if name.endswith(".rows")}
            found[task] = {
                name: (value / counts[f"{name}.rows" if self.kind == "gram" else ".rows"]).float().cpu()
                for name, value in total.items()
                if name not in counts
            }
        self._sums = {}
        return found

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

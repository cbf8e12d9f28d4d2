"""One metric per loader, averages over ID and OOD loaders, and the outcome of every single sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities import dim_zero_cat

from lwptv_lightning.evaluation.lightning import ranks_of
from lwptv_lightning.evaluation.loaders import sample_positions
from lwptv_lightning.registry import LoaderName


class LoaderMetrics(nn.Module):
    """A clone of one metric for each loader; by default top-1 accuracy, whatever the number of classes."""

    def __init__(self, loaders: Sequence[str], metric: Metric | MetricCollection | None = None) -> None:
        super().__init__()
        metric = MulticlassAccuracy(average="micro") if metric is None else metric
        if not isinstance(metric, Metric | MetricCollection):
            raise TypeError(f"metric must be a torchmetrics Metric or MetricCollection, not {metric!r}.")
        self.loaders = tuple(loaders)
        # A list, because names may hold characters that attributes may not.
        self._metrics = nn.ModuleList(metric.clone() for _ in self.loaders)
        self._first_batches: dict[str, float] = {}

    def __getitem__(self, loader: str) -> Metric | MetricCollection:
        metric = self._metrics[self.loaders.index(loader)]
        assert isinstance(metric, Metric | MetricCollection)
        return metric

    def count(self, name: str, loader: Any, batch_idx: int, logits: Tensor, targets: Tensor) -> int:
        """Update a loader's metric with the samples of a batch that count, and return how many these are."""
        if batch_idx == 0 and _is_iterable(loader):
            self._first_batches[name] = float(logits.double().sum())
        counted = len(sample_positions(loader, batch_idx, len(targets)))
        if counted:
            self[name].update(logits[:counted], targets[:counted])
        return counted

    def warn_of_repeated(self, loaders: Mapping[str, Any], trainer: Trainer) -> None:
        """Warn of iterable loaders that gave two of a trainer's processes the same samples; all must call this."""
        if not any(map(_is_iterable, loaders.values())):
            return
        seen = Counter(item for batches in ranks_of(trainer).exchange(self._first_batches) for item in batches.items())
        for loader in sorted({loader for (loader, _), count in seen.items() if count > 1}):
            rank_zero_warn(
                f"loader {loader!r} gives several processes the same samples, which are counted several times. "
                "Let the iterable data set yield each process's own share, or pass one with a length."
            )

    def logged(self, loader: str) -> dict[str, Metric]:
        """Return what to log of a loader: its metric under its name, or a collection's under ``name/<metric>``."""
        metric = self[loader]
        if isinstance(metric, MetricCollection):
            return {f"{loader}/{name}": single for name, single in metric.items(copy_state=False)}
        return {loader: metric}

    def compute(self) -> dict[str, float]:
        """Return every loader's figures; with several processes, those of all of them together."""
        named = (pair for loader in self.loaders for pair in self.logged(loader).items())
        return {name: float(metric.compute()) for name, metric in named}


def _is_iterable(loader: Any) -> bool:
    """Tell whether a loader's samples have no positions, so that only its data set can divide them over processes."""
    return isinstance(getattr(loader, "dataset", None), IterableDataset)


def averages(figures: Mapping[str, float], expert_accuracy: Mapping[str, float] | None = None) -> dict[str, float]:
    """Average figures over the ID and over the OOD loaders, as far as there are such loaders.

    A ``/<metric>`` behind a loader's name tells several metrics apart. With expert accuracies, of ID sets by name, also
    ``id/normalized``: the mean over those sets of merged divided by expert.

    Example:
        >>> averages({"id/a": 0.8, "id/b": 0.6, "ood/c": 0.5}, {"a": 1.0, "b": 0.6})
        {'id/avg': 0.7, 'ood/avg': 0.5, 'id/normalized': 0.9}
    """
    groups: dict[str, list[float]] = {}
    normalized: dict[str, list[float]] = {}
    for name, figure in figures.items():
        loader = LoaderName.of_figure(name)
        set_name, slash, metric = loader.name.partition("/")
        groups.setdefault(f"{loader.domain}/avg{slash}{metric}", []).append(figure)
        if loader.domain == "id" and expert_accuracy and set_name in expert_accuracy:
            normalized.setdefault(f"id/normalized{slash}{metric}", []).append(figure / expert_accuracy[set_name])
    return {name: sum(values) / len(values) for name, values in (groups | normalized).items()}


class SampleOutcomes(Metric):
    """Whether each sample was classified correctly, by each of several models that are evaluated side by side."""

    full_state_update = False
    positions: list[Tensor]
    correct: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("positions", [], dist_reduce_fx="cat")
        self.add_state("correct", [], dist_reduce_fx="cat")

    def update(self, positions: Tensor, correct: Tensor) -> None:
        """Add samples: their positions in the data set ``(n,)`` and outcomes ``(models, n)``; n may be 0."""
        self.positions.append(positions)
        self.correct.append(correct.T)

    def compute(self) -> Tensor:
        """Return the outcomes in the order of the data set, ``(models, N)`` bool."""
        return dim_zero_cat(self.correct)[dim_zero_cat(self.positions).argsort()].T

"""One metric per loader, whose samples may lie on several processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lwptv_lightning.evaluation.averages import averages
from lwptv_lightning.evaluation.figures import figures_of, load_states, states_of
from lwptv_lightning.evaluation.inputs import count_samples, fingerprints
from lwptv_lightning.evaluation.metric_choice import AnyMetric, MetricChoice, kind_of
from lwptv_lightning.evaluation.shares import Replicas, is_located, share_of
from lwptv_lightning.registry import shown


class LoaderMetrics(nn.Module):
    """A metric for each loader, clones of one or of those given by name; top-1 accuracy by default."""

    def __init__(
        self,
        loaders: Sequence[str],
        metric: AnyMetric | Mapping[str, AnyMetric] | None = None,
        replicas: Replicas | None = None,
        together: bool = False,
    ) -> None:
        super().__init__()
        metrics = MetricChoice(metric).of(dict.fromkeys(loaders, nn.Identity()))
        self.loaders = tuple(metrics)
        self.replicas = replicas or Replicas()
        self._together_each_batch = together
        # A list, because names may hold characters that attributes may not.
        self._metrics = nn.ModuleList(metric.clone() for metric in metrics.values())
        for part in self.modules():
            if isinstance(part, Metric):
                part.distributed_available_fn = _never  # processes meet in `figures` alone
        self._batches = dict.fromkeys(self.loaders, 0)
        self._seen: dict[str, list[Tensor]] = {loader: [] for loader in self.loaders}
        self._workers: dict[str, int] = {}
        self._figures: dict[str, dict[str, float]] = {}
        self._averages: dict[tuple[tuple[str, float], ...], dict[str, float]] = {}
        self._is_one_number: dict[str, bool] = {}
        self._logged: set[str] = set()

    def __getitem__(self, loader: str) -> AnyMetric:
        metric = self._metrics[self.loaders.index(loader)]
        assert isinstance(metric, Metric | MetricCollection)
        return metric

    def named(self) -> dict[str, AnyMetric]:
        """Return each loader's metric."""
        return {loader: self[loader] for loader in self.loaders}

    def count(self, name: str, loader: Any, batch_idx: int, logits: Any, targets: Any, inputs: Any = None) -> int:
        """Update a loader's metric with a batch, if it counts, and return how many samples these are."""
        share = share_of(loader)
        if share is not None and share.number(batch_idx) is None:
            return 0
        update(name, self[name], logits, targets)
        self._batches[name] += 1
        if self._batches[name] == 1:
            self._require_figures(name)
        self._workers[name] = 0 if is_located(loader) else getattr(loader, "num_workers", 0)
        if (self.replicas.size > 1 or self._workers[name] > 1) and not is_located(loader):
            self._seen[name].append(fingerprints([inputs, targets]))
        return len(targets) if isinstance(targets, list) else count_samples(targets)

    @contextmanager
    def counting(self, name: str) -> Iterator[None]:
        """Run the model on a loader's batch and count it inside the block, whose error all processes stop with.

        Raises:
            ValueError: The processes must run the model together, and one of them has no more batches of a loader.
        """
        if self._together_each_batch:
            self._meet(name, None)
        with self.replicas.ranks.telling_errors():
            yield

    def figures(self, loader: str) -> dict[str, float]:
        """Return a loader's figures, those of all processes together: its own, or one for each part of a result.

        All processes call this, once their samples of the loader are counted; for loaders before it, it is done first.

        Raises:
            ValueError: A loader gave a process no batch, or several processes some of the same samples.
        """
        for name in self.loaders[: self.loaders.index(loader) + 1]:
            if name not in self._figures:
                self._figures[name] = self._together(name)
        return self._figures[loader]

    def unlogged(self, loader: str) -> dict[str, float]:
        """Return a loader's figures the first time, later none."""
        figures = {} if loader in self._logged else self.figures(loader)
        self._logged.add(loader)
        return figures

    def compute(self) -> dict[str, float]:
        """Return every loader's figures."""
        return {name: figure for loader in self.loaders for name, figure in self.figures(loader).items()}

    def averages(self, expert_accuracy: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return the `averages` of all figures, but for those of metrics of different kinds, which are told."""
        key = tuple((expert_accuracy or {}).items())
        if key not in self._averages:
            kinds = {loader: kind_of(metric) for loader, metric in self.named().items()}
            self._averages[key] = averages(self.compute(), expert_accuracy, self.loaders, kinds)
        return self._averages[key]

    def _together(self, name: str) -> dict[str, float]:
        metric = self[name]
        seen = torch.cat(self._seen[name]) if self._seen[name] else torch.zeros(0, dtype=torch.int64)
        warn_of_workers(name, seen, self._workers.get(name, 0))
        alone = self.replicas.ranks.size == 1
        counted = self._batches[name], seen, None if alone else states_of(metric)
        found = self._meet(name, counted)
        batches = [each[0] for each in found]
        require_batches(name, batches, [each[1] for each in found])
        if not alone:
            # Where all processes had the same samples those of one count.
            same = len(found) > 1 and all_the_same(name, [each[1] for each in found])
            whole = [(count, states) for count, _, states in (found[:1] if same else found) if count]
            load_states(metric, [states for _, states in whole], [count for count, _ in whole])
        with warnings.catch_warnings():
            # Of a process without a sample of its own.
            warnings.filterwarnings("ignore", "The ``compute`` method of metric .* was called before", UserWarning)
            figures = self._named(name, metric.compute())
        if self._is_one_number.get(name) and figures.keys() != {name}:
            raise ValueError(
                f"the states of {type(metric).__name__} cannot be put together over {len(found)} processes: it has one "
                f"number on {name!r} on each, and {len(figures)} over all. Give its states a dist_reduce_fx."
            )
        return figures

    def _meet(self, name: str, counted: Any) -> list[Any]:
        """Return what each process counted of a loader; ``None`` before a batch that they must run together."""
        found = self.replicas.exchange((name, counted))
        places = [f"loader {at!r}" if own is None else f"the end of loader {at!r}" for at, own in found]
        if len(set(places)) > 1:
            raise ValueError(
                f"processes that run a sharded model together are at {', '.join(places)}: a loader without a sampler "
                "gives them unequal numbers of batches. Use a data set with a length."
            )
        return [own for _, own in found]

    def _named(self, name: str, result: Any) -> dict[str, float]:
        figures = figures_of(name, result, type(self[name]).__name__)
        for figure in figures:
            if figure != name and figure in self.loaders:
                raise ValueError(f"{figure!r} is a loader and a part of what the metric finds on {name!r}; rename one.")
        return figures

    def _require_figures(self, name: str) -> None:
        """Compute a copy of a metric after its first batch, so that a result that cannot be logged is told early."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = self[name].clone().compute()
        except Exception:  # one batch may be too little for it
            return
        self._is_one_number[name] = self._named(name, result).keys() == {name}


def _never() -> bool:
    return False


def update(name: str, metric: AnyMetric, logits: Any, targets: Any) -> None:
    """Update a loader's metric; what torchmetrics refuses is told with the loader's name and with the shapes."""
    try:
        metric.update(logits, targets)
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        if not type(metric).__module__.startswith("torchmetrics.") or isinstance(error, torch.OutOfMemoryError):
            raise
        shapes = [f"{tuple(each.shape)}" if isinstance(each, Tensor) else shown(each) for each in (logits, targets)]
        raise ValueError(
            f"loader {name!r}: {kind_of(metric)} does not take what the model returns, {shapes[0]}, with targets, "
            f"{shapes[1]}: {error}"
        ) from error


def require_batches(name: str, batches: Sequence[int], seen: Sequence[Tensor]) -> None:
    """Raise `ValueError` where a loader gave no batch, at all or on a process that expects its own."""
    if not sum(batches):
        raise ValueError(f"loader {name!r} gave no batch.")
    if any(map(len, seen)) and not all(batches):
        raise ValueError(
            f"loader {name!r} gave {len(batches)} processes {list(batches)} batches; each needs one at least. Use "
            "fewer processes, or a data set with a length, whose batches are divided among them."
        )


def warn_of_workers(name: str, seen: Tensor, workers: int) -> None:
    """Warn where each worker of a loader without a sampler gave the same samples, by their fingerprints."""
    if workers > 1 and len(seen) and not (torch.unique(seen, return_counts=True)[1] % workers).any():
        rank_zero_warn(
            f"loader {name!r} gives each sample {workers} times, by each of its workers, and each is counted. "
            "Let the iterable data set yield each worker's own share: torch.utils.data.get_worker_info()."
        )


def all_the_same(name: str, seen: Sequence[Tensor]) -> bool:
    """Tell whether a loader without a sampler gave several processes the same samples, by their fingerprints.

    Raises:
        ValueError: It gave them some of the same, so that nobody knows how often these are to be counted.
    """
    if not any(map(len, seen)):
        return False
    ordered = [each.sort().values for each in seen]
    advice = "Let the iterable data set yield each process's own share, or pass one with a length."
    if all(torch.equal(each, ordered[0]) for each in ordered):
        rank_zero_warn(f"loader {name!r} gives several processes the same samples, which are counted once. {advice}")
        return True
    apart = [set(each.tolist()) for each in seen]
    repeated = sum(map(len, apart)) - len(set().union(*apart))
    if repeated > sum(map(len, apart)) / 100:
        raise ValueError(
            f"loader {name!r} gives {repeated} samples to several processes, but not all of them. {advice}"
        )
    if repeated:
        rank_zero_warn(f"loader {name!r} gives {repeated} samples to several processes; each of them is counted.")
    return False

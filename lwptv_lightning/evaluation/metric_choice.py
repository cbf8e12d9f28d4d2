"""`MetricChoice`: which metric measures a loader, and whether what it measures is of the same kind as another's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lwptv_lightning.registry import LoaderName, UnknownNameError, nearest, printable_name, require_texts, shown

AnyMetric: TypeAlias = "Metric | MetricCollection"
Metrics: TypeAlias = "AnyMetric | Mapping[str, AnyMetric] | Callable[[nn.Module], AnyMetric]"
"""One metric for all loaders, one by the name of each, or what makes one of a loader's head."""

_SETTINGS = ("average", "top_k", "beta", "squared")
"""What a metric is made with that decides whether its figures may be averaged with another's."""


class MetricChoice:
    """Which metric measures a loader.

    Args:
        given: A torchmetrics metric or collection for every loader, top-1 accuracy by default. Or a mapping of the
            loaders' names, such as ``"id/svhn"``, or their sets', such as ``"svhn"`` or with a group ``"far/svhn"``, to
            one each; a longer name goes first. Or a function that makes one of what makes a loader's logits: its head,
            or the model where there are no heads.

    Raises:
        TypeError: It is none of these.
        ValueError: A mapping is empty.

    Example:
        >>> choice = MetricChoice(lambda head: MulticlassAccuracy(head.out_features))
        >>> choice.of({"id/a": nn.Linear(4, 2), "id/b": nn.Linear(4, 5)})["id/b"].num_classes
        5
    """

    def __init__(self, given: Metrics | None = None) -> None:
        self.is_default = given is None
        self.stored: str | None = None  # what a checkpoint says of its module's, which only the caller can give
        metric: Any = MulticlassAccuracy(average="micro") if given is None else given
        self._one = _require_metric("metric", metric) if isinstance(metric, Metric | MetricCollection) else None
        self.named: dict[str, AnyMetric] = {}
        self._make: Callable[[nn.Module], AnyMetric] | None = None
        if isinstance(metric, Mapping):
            require_texts("the loaders in metric", metric, "names such as 'id/svhn', or of sets such as 'svhn'")
            self.named = {name: _require_metric(f"metric of {shown(name)}", each) for name, each in metric.items()}
            if not self.named:
                raise ValueError("metric is an empty mapping: expected a metric for each loader, {'id/svhn': metric}.")
        elif self._one is None and callable(metric) and not isinstance(metric, nn.Module | type):
            self._make = metric
        elif self._one is None:
            _require_metric("metric", metric)

    def of(self, heads: Mapping[str, nn.Module], *, partly: bool = False) -> dict[str, AnyMetric]:
        """Return the metric of each of some loaders, given with what makes their logits.

        Args:
            heads: Loader name to its head, or the model.
            partly: Whether these may be some of the loaders that metrics are named for.

        Raises:
            UnknownNameError: A metric is for no loader, unless ``partly``; or a loader has none.
            TypeError: A function made something else.
            ValueError: A metric is for another number of classes than a head tells apart.
        """
        if self.named:
            self._require_named(heads, partly)
        if self.is_default and self.stored is not None:
            raise ValueError(
                f"the checkpoint is of a module with metric={self.stored}, and load_from_checkpoint was given none: "
                "give metric=..., torchmetrics' MulticlassAccuracy(average='micro') for top-1 accuracy."
            )
        found = {loader: self._of(loader, head) for loader, head in heads.items()}
        for loader, head in heads.items():
            require_classes(loader, found[loader], getattr(head, "out_features", getattr(head, "out_channels", None)))
        return found

    def require_of_classes(self, what: str, heads: Mapping[str, nn.Module]) -> None:
        """Raise a `ValueError` where a loader is known to be measured by something else than classes and labels.

        Args:
            what: What needs classes, in words.
            heads: Loader name to its head, or the model.
        """
        for loader, head in heads.items():
            metric = self._of(loader, head) if not self.named or self._name_of(loader) is not None else None
            if metric is not None and is_of_other_than_classes(metric):
                raise ValueError(
                    f"{what} is of predictions of one class for each sample, and loader {loader!r} is measured by "
                    f"{kind_of(metric)}, which is not of such."
                )

    def _of(self, loader: str, head: nn.Module) -> AnyMetric:
        if self._one is not None:
            return self._one
        if self._make is not None:
            return _require_metric(f"what metric=... makes for loader {loader!r}", self._made(loader, head))
        name = self._name_of(loader)
        assert name is not None
        return self.named[name]

    def _name_of(self, loader: str) -> str | None:
        """Return under which name a loader has a metric: its own, its set's with the group, or its set's."""
        return loader if loader in self.named else LoaderName.parse(loader).key_in(self.named)

    def _made(self, loader: str, head: nn.Module) -> object:
        assert self._make is not None
        try:
            return self._make(head)
        except Exception as error:
            raise TypeError(
                f"metric=... failed for loader {loader!r}: it must be a function of one argument, what makes the "
                f"loader's logits, here a {type(head).__name__}, that returns a metric. {type(error).__name__}: {error}"
            ) from error

    def _require_named(self, loaders: Iterable[str], partly: bool) -> None:
        names = {loader: LoaderName.parse(loader).keys for loader in loaders}
        for loader, keys in names.items():
            if self._name_of(loader) is None:
                near = nearest(loader, self.named) or nearest(keys[-1], self.named)
                raise ValueError(
                    f"metric has none for loader {loader!r}.{near} It has {', '.join(map(printable_name, self.named))}"
                    "; give one for each loader, by its name or its set's."
                )
        known = {*names, *(key for keys in names.values() for key in keys)}
        for name in self.named:
            if name not in known and not partly:
                raise UnknownNameError("loader in metric:", name, [*names])

    def given(self) -> list[AnyMetric]:
        """Return all metrics that are known without a head."""
        return [*self.named.values(), *([] if self._one is None else [self._one])]

    def described(self) -> str | None:
        """Return in words what was given, also to a module that a checkpoint is of; ``None`` of the default."""
        if self.is_default:
            return self.stored
        if self._make is not None:
            return "a function of the head"
        if self._one is not None:
            return kind_of(self._one)
        return "{" + ", ".join(f"{name!r}: {kind_of(metric)}" for name, metric in self.named.items()) + "}"


def singles_of(metric: AnyMetric) -> list[Metric]:
    """Return the metrics of a collection, or the one that is none."""
    return list(metric.values(copy_state=False)) if isinstance(metric, MetricCollection) else [metric]  # type: ignore


def kind_of(metric: AnyMetric) -> str:
    """Return what a metric measures in words: its class, and what it was made with that makes it another figure.

    Example:
        >>> kind_of(MulticlassAccuracy(5)), kind_of(MulticlassAccuracy(3)) == kind_of(MulticlassAccuracy(5))
        ('MulticlassAccuracy(average=macro, top_k=1)', True)
    """
    if isinstance(metric, MetricCollection):
        return f"a collection of {', '.join(map(str, metric.keys()))}"
    own = {name: getattr(metric, name, None) for name in _SETTINGS}
    settings = ", ".join(f"{name}={value}" for name, value in own.items() if isinstance(value, str | int | float))
    return f"{type(metric).__name__}({settings})" if settings else type(metric).__name__


def is_of_classes(metric: AnyMetric | None) -> bool:
    """Tell whether a metric compares logits of classes with labels, as the default one does."""
    return metric is None or all(_is_torchs(single) and _is_multiclass(single) for single in singles_of(metric))


def is_of_other_than_classes(metric: AnyMetric) -> bool:
    """Tell whether a metric is known to compare something else than classes with labels: values, several labels."""
    known = [single for single in _inner(metric) if _is_torchs(single)]
    return any(not _is_multiclass(single) and ".segmentation" not in type(single).__module__ for single in known)


def takes_any_output(metric: AnyMetric) -> bool:
    """Tell whether a metric may take what is no tensor: one of a user's own, or of detection."""
    return any(not _is_torchs(single) or ".detection" in type(single).__module__ for single in _inner(metric))


def no_fractions(metrics: Mapping[str, AnyMetric], figures: Iterable[str]) -> set[str]:
    """Return those of some figures that no percentage can show: of metrics that are not known to reach 1 at best.

    Args:
        metrics: Loader name to metric.
        figures: Names as logged: of loaders, of averages, or with a part behind them.

    Example:
        >>> from torchmetrics import MeanSquaredError
        >>> sorted(no_fractions({"id/a": MeanSquaredError()}, ["id/a", "id/avg", "ood/b"]))
        ['id/a', 'id/avg']
    """
    found = set()
    for figure in figures:
        over = LoaderName.of_figure(figure).over
        # A loader's name may go on where another one's ends.
        own = max((loader for loader in metrics if f"{figure}/".startswith(f"{loader}/")), key=len, default=None)
        loaders, part = [] if own is None else [own], figure[len(own or "") + 1 :]
        if own is None and over is not None:
            loaders = [loader for loader in metrics if LoaderName.parse(loader).is_within(over)]
            part = figure[len(over) + 1 :].partition("/")[2]
        if not all(_is_fraction(metrics[loader], part.partition("/")[0]) for loader in loaders):
            found.add(figure)
    return found


def _is_fraction(metric: AnyMetric, part: str) -> bool:
    named = metric[part] if isinstance(metric, MetricCollection) and part in metric else metric
    known = [single for single in _inner(named) if _is_torchs(single)]
    return all(getattr(single, "plot_upper_bound", None) == 1 for single in known)


def require_classes(loader: str, metric: AnyMetric, classes: object) -> None:
    """Raise a `ValueError` where a metric is for another number of classes than a head tells apart, where known."""
    for single in singles_of(metric) if isinstance(classes, int) else ():
        wanted = getattr(single, "num_classes", None)
        if _is_torchs(single) and _is_multiclass(single) and wanted not in (None, classes):
            raise ValueError(
                f"loader {loader!r}: its head tells {classes} classes apart, and {type(single).__name__} is for "
                f"num_classes={wanted}. Give each loader its own metric, metric={{{loader!r}: ...}}, or a function "
                "of the head."
            )


def _inner(metric: AnyMetric) -> list[Metric]:
    """Return the metrics that others are not made of, such as those within torchmetrics' wrappers."""
    every = [part for part in metric.modules() if isinstance(part, Metric)]
    return [part for part in every if not any(isinstance(inner, Metric) for inner in [*part.modules()][1:])]


def _is_torchs(metric: Metric) -> bool:
    return type(metric).__module__.startswith("torchmetrics.")


def _is_multiclass(metric: Metric) -> bool:
    return type(metric).__name__.startswith("Multiclass")


def _require_metric(what: str, given: Any) -> AnyMetric:
    if not isinstance(given, Metric | MetricCollection):
        raise TypeError(f"{what} must be a torchmetrics Metric or MetricCollection, not {shown(given)}.")
    if isinstance(given, MetricCollection) and not len(given):
        raise ValueError(f"{what} is an empty MetricCollection, which measures nothing.")
    return given

"""The names that options take, and those of loaders and of the figures that are measured on them; no torch here."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from lwptv_lightning.registry.given import require_kind
from lwptv_lightning.registry.lookup import nearest

GRANULARITIES = ("block", "module", "tensor")
"""What a layer is."""
RANKINGS = ("task", "all")
"""Whether layers are ranked for each task or over all tasks."""
COUNTS = ("layers", "parameters")
"""What the ratio to prune counts."""
DOMAINS = ("id", "ood")
AVERAGES = ("avg", "normalized")


@dataclass(frozen=True)
class LoaderName:
    """A domain and the name of a set in it, ``id/svhn`` or ``ood/mnist``, with a group or without: ``ood/far/mnist``.

    Attributes:
        domain: ``"id"`` (a merged task's data) or ``"ood"`` (any other data).
        name: The set's name.
        group: What stands between the two; a name that holds a slash is taken apart at the first one.

    Example:
        >>> LoaderName.parse("ood/mnist"), str(LoaderName("id", "svhn"))
        (LoaderName(domain='ood', name='mnist', group=None), 'id/svhn')
        >>> LoaderName.parse("ood/far/mnist").keys
        ('far/mnist', 'mnist')
    """

    domain: str
    name: str
    group: str | None = None

    def __post_init__(self) -> None:
        group, _, name = self.name.partition("/")
        if self.group is None and group and name:
            object.__setattr__(self, "group", group)
            object.__setattr__(self, "name", name)

    @classmethod
    def parse(cls, text: str) -> LoaderName:
        """Take a loader's name apart.

        Raises:
            ValueError: The name is not ``id/...`` or ``ood/...``, has no set, or is one that the averages use.
        """
        require_kind("a loader's name", text, str, "a text such as 'id/svhn'")
        parsed = cls.of_figure(text)
        if parsed.domain not in DOMAINS or not parsed.name or text.endswith("/"):
            forms = "'id/<name>' (a merged task's data) or 'ood/<name>' (any other data)"
            raise ValueError(
                f"loader {text!r} must be named {forms}, with '<group>/' before the name where there are groups."
                f"{nearest(parsed.domain, DOMAINS)}"
            )
        if parsed.over is not None:
            taken = text.removeprefix(f"{parsed.over}/").partition("/")[0]
            raise ValueError(f"loader {text!r}: {taken!r} is taken by the averages; choose another name.")
        return parsed

    @classmethod
    def of_figure(cls, text: str) -> LoaderName:
        """Take apart what a figure is logged as: a loader's name, an average's, or with ``/<metric>`` behind it."""
        domain, _, name = text.partition("/")
        return cls(domain, name)

    @property
    def keys(self) -> tuple[str, ...]:
        """What the set is called without its domain, the longest first: with its group, and by itself."""
        return (self.name,) if self.group is None else (f"{self.group}/{self.name}", self.name)

    def key_in(self, known: Container[str]) -> str | None:
        """Return the first of the keys that is known, such as among heads; ``None`` where none is."""
        return next((key for key in self.keys if key in known), None)

    @property
    def over(self) -> str | None:
        """What this is an average over: a domain, or one group of it, ``"ood/far"``; ``None`` of what is no average."""
        pieces = str(self).split("/")
        return next(("/".join(pieces[:at]) for at in (1, 2) if {*pieces[at : at + 1]} & {*AVERAGES}), None)

    @property
    def is_average(self) -> bool:
        """Whether this is an average over the loaders of a domain or of a group."""
        return self.over is not None

    @property
    def heading(self) -> str:
        """The name as a heading, ``"ood far/mnist"``; an average's has its domain in capitals, ``"OOD far avg"``."""
        if self.over is None:
            return f"{self.domain} {self.keys[0]}"
        words = str(self).replace("/", " ", 1 + self.over.count("/"))
        return self.domain.upper() + words.removeprefix(self.domain)

    def is_within(self, over: str) -> bool:
        """Tell whether a domain, or a group of one, ``"ood/far"``, holds this set."""
        return str(self).startswith(f"{over}/")

    def __str__(self) -> str:
        return f"{self.domain}/{self.keys[0]}"


def require_groups_apart(loaders: Iterable[str]) -> None:
    """Raise a `ValueError` where a loader is named as the group of another, whose average would be a part of its own.

    Example:
        >>> require_groups_apart(["ood/far", "ood/far/mnist"])
        Traceback (most recent call last):
        ValueError: loader 'ood/far' is named as the group of 'ood/far/mnist': rename one, or put both into a group.
    """
    parsed = {loader: LoaderName.parse(loader) for loader in loaders}
    groups = {f"{name.domain}/{name.group}": loader for loader, name in parsed.items() if name.group is not None}
    for loader in parsed:
        if loader in groups:
            raise ValueError(
                f"loader {loader!r} is named as the group of {groups[loader]!r}: rename one, or put both into a group."
            )


def own_tasks(loaders: Iterable[str], tasks: Container[str]) -> dict[str, str]:
    """Return for each ID loader that is of one of some tasks which one that is.

    Example:
        >>> own_tasks(["id/svhn", "id/night/cars", "ood/svhn"], ["svhn", "cars"])
        {'id/svhn': 'svhn', 'id/night/cars': 'cars'}
    """
    parsed = {loader: LoaderName.parse(loader) for loader in loaders}
    found = {loader: name.key_in(tasks) for loader, name in parsed.items() if name.domain == "id"}
    return {loader: task for loader, task in found.items() if task is not None}

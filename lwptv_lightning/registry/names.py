"""The names that options take, and those of loaders and of the figures that are measured on them; no torch here."""

from __future__ import annotations

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
    """A domain and the name of a set in it, written ``id/svhn`` or ``ood/mnist``.

    Attributes:
        domain: ``"id"`` (a merged task's data) or ``"ood"`` (any other data).
        name: The set's name.

    Example:
        >>> LoaderName.parse("ood/mnist"), str(LoaderName("id", "svhn"))
        (LoaderName(domain='ood', name='mnist'), 'id/svhn')
    """

    domain: str
    name: str

    @classmethod
    def parse(cls, text: str) -> LoaderName:
        """Take a loader's name apart.

        Raises:
            ValueError: The name is not ``id/...`` or ``ood/...``, or one that the averages use.
        """
        require_kind("a loader's name", text, str, "a text such as 'id/svhn'")
        parsed = cls.of_figure(text)
        if parsed.domain not in DOMAINS or not parsed.name:
            forms = "'id/<name>' (a merged task's data) or 'ood/<name>' (any other data)"
            raise ValueError(f"loader {text!r} must be named {forms}.{nearest(parsed.domain, DOMAINS)}")
        if parsed.is_average:
            raise ValueError(f"loader {text!r}: {parsed.name!r} is taken by the averages; choose another name.")
        return parsed

    @classmethod
    def of_figure(cls, text: str) -> LoaderName:
        """Take apart what a figure is logged as: a loader's name, an average's, or with ``/<metric>`` behind it."""
        domain, _, name = text.partition("/")
        return cls(domain, name)

    @property
    def is_average(self) -> bool:
        """Whether this is an average over the loaders of a domain."""
        return self.name.partition("/")[0] in AVERAGES

    def __str__(self) -> str:
        return f"{self.domain}/{self.name}"

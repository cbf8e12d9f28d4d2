"""`Measured`: the figures of a module's last whole evaluation, as long as it still holds what was evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torchmetrics.classification import MulticlassAccuracy

from lwptv_lightning.evaluation.contents import Contents
from lwptv_lightning.registry import own_tasks

if TYPE_CHECKING:
    from lwptv_lightning.evaluation.module import MergeModule


@dataclass(frozen=True)
class Measured:
    """What was measured, and of what.

    Attributes:
        figures: Loader name, or an average's, to figure.
        metric: What the figures are.
        controls: What they are measured against, as far as it is known: each expert's figure on its own set.
    """

    figures: Mapping[str, float]
    metric: str
    controls: Mapping[str, Mapping[str, float]]
    _model: Contents
    _heads: Contents

    @classmethod
    def of(cls, module: MergeModule) -> Measured:
        """Return what a module's metrics found, at the end of an evaluation; all processes call it."""
        figures = module.metrics.compute()
        figures |= module.metrics.averages(module.expert_accuracy)
        kinds = {type(module.metrics[loader]) for loader in module.metrics.loaders}
        metric = ", ".join(sorted(kind.__name__ for kind in kinds))
        own = own_tasks(module.metrics.loaders, module.expert_accuracy)
        experts = {loader: module.expert_accuracy[task] for loader, task in own.items()}
        return cls(
            figures,
            "accuracy" if kinds == {MulticlassAccuracy} else metric,
            {"experts": experts} if experts else {},
            Contents.of(module.model, {}),
            Contents.of(module.heads, {}),
        )

    @classmethod
    def elsewhere(
        cls, module: MergeModule, figures: Mapping[str, float], controls: Mapping[str, Mapping[str, float]]
    ) -> Measured:
        """Return accuracies that were measured of what a module now holds, without an evaluation of its own."""
        return cls(figures, "accuracy", controls, Contents.of(module.model, {}), Contents.of(module.heads, {}))

    def still_of(self, module: MergeModule) -> bool:
        """Tell whether a module holds the weights, and its heads those, that were evaluated; all processes call it."""
        return not (self._model.changed_in(module.model) or self._heads.changed_in(module.heads))

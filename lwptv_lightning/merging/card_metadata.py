"""The metadata of a model card, as the Hugging Face hub reads them, by its own library."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lwptv_lightning.merging.base_card import BaseCard
from lwptv_lightning.registry import LoaderName, encodable, printable_name

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TAGS = ("merge", "lwptv-lightning")


def card_metadata(
    name: str,
    library: str | None,
    relation: str,
    base: BaseCard,
    merged_from: Sequence[str],
    figures: Mapping[str, float],
    metric: str,
) -> str:
    """Return YAML of what is known, without the lines that enclose it; see `lwptv_lightning.model_card`.

    Args:
        name: The model's, for its results.
        library: What loads it, as the hub calls it.
        relation: What it is to its base: ``"merge"`` or ``"adapter"``.
        base: What is known of the base.
        merged_from: Further models of the hub that were merged.
        figures: Loader name to figure; what is not finite is left out.
        metric: What the figures are.

    Example:
        >>> metadata = card_metadata("m", "timm", "merge", BaseCard(license="mit"), (), {}, "accuracy")
        >>> {"license: mit", "library_name: timm", "base_model_relation: merge"} <= set(metadata.splitlines())
        True
    """
    from huggingface_hub import ModelCardData

    models = [each for each in dict.fromkeys((base.name, *merged_from)) if each is not None]
    results = _results(figures, metric, base.pipeline_tag)
    data = ModelCardData(
        library_name=library,
        tags=list(TAGS),
        license=base.license,
        license_name=base.license_name,
        license_link=base.license_link,
        pipeline_tag=base.pipeline_tag,
        base_model=models or None,
        base_model_relation=relation,
        model_name=encodable(printable_name(name)) if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def heading(loader: str) -> str:
    """Return a loader's or an average's name as a heading."""
    return printable_name(LoaderName.of_figure(loader).heading)


def _results(figures: Mapping[str, float], metric: str, pipeline_tag: str | None) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    measured = {loader: value for loader, value in figures.items() if math.isfinite(value)}
    kinds: dict[str, str] = {}
    for loader in measured:
        kind = re.sub(r"[^a-z0-9]+", "-", loader.lower()).strip("-") or "set"
        # Results of one kind are taken for those of one set.
        kinds[loader] = f"{kind}-{len(kinds)}" if kind in kinds.values() else kind
    return [
        EvalResult(
            task_type=pipeline_tag or "other",
            dataset_type=kinds[loader],
            dataset_name=encodable(heading(loader)),
            metric_type=encodable(printable_name(metric)),
            metric_value=round(value, 6),
        )
        for loader, value in measured.items()
    ]

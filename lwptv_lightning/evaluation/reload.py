"""Evaluate a merged file as it is: a `MergeModule` that holds it, without the checkpoints it was made of."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lwptv_lightning.checkpoints import (
    CheckpointError,
    CheckpointSource,
    Provenance,
    TensorHeader,
    compare_headers,
    match_names,
    open_checkpoint,
    some_of,
)
from lwptv_lightning.evaluation.contents import Contents
from lwptv_lightning.evaluation.given_heads import HeadsGiven
from lwptv_lightning.evaluation.heads_file import heads_path
from lwptv_lightning.evaluation.module import MergeModule
from lwptv_lightning.functional import plain_state
from lwptv_lightning.merging import install_
from lwptv_lightning.recipe import MergeRecipe


def load_merged(
    source: CheckpointSource, model: nn.Module, *, heads: HeadsGiven | None = None, **options: Any
) -> MergeModule:
    """Return a module that holds a merged file, to validate, test or predict with as when it was written.

    Args:
        source: What `MergeModule.save_merged`, `lwptv_lightning.save_merged` or ``lwptv merge`` wrote.
        model: The architecture, whose weights are overwritten.
        heads: As for `MergeModule`; by default those in the file that ``save_merged(..., heads=True)`` wrote beside it.
        options: Others of `MergeModule`, such as ``metric``.

    Raises:
        CheckpointError: The file does not say that it was merged, or does not fit the model.

    Example:
        >>> import tempfile, torch
        >>> from lwptv_lightning import TaskVectors
        >>> vectors = TaskVectors.open(nn.Linear(2, 2), {"a": {"weight": torch.eye(2), "bias": torch.ones(2)}})
        >>> module = MergeModule(nn.Linear(2, 2), vectors, "simple_average")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     loaded = load_merged(module.save_merged(f"{folder}/m.safetensors"), nn.Linear(2, 2))
        >>> torch.equal(loaded.model.weight, module.model.weight), loaded.tasks
        (True, ('a',))
    """
    opened = open_checkpoint(source)
    about = Provenance.of(opened)
    if about.kind != "merged" or about.recipe is None:
        raise CheckpointError(f"{opened.source}: this file does not say that it was merged; load it into the model.")
    named = match_names(opened, TensorHeader.of_all(plain_state(model)), model)
    if heads is None and isinstance(source, str | Path) and heads_path(source).is_file():
        heads = heads_path(source)
    recipe = MergeRecipe.from_dict(about.recipe)
    module = MergeModule(model, None, recipe, heads=heads, tasks=tuple(about.tasks), **options)
    compared = compare_headers(TensorHeader.of_all(plain_state(model)), named.headers)
    places = tuple(f"{path}." for name in module.heads for path in module.heads.place(name, model))
    aside = [name for name in (*compared.missing, *compared.reshaped) if name.startswith(places)]
    if amiss := [name for name in (*compared.missing, *compared.extra, *compared.reshaped) if name not in aside]:
        raise CheckpointError(
            f"{opened.source} does not fit the model, {type(model).__name__}: {some_of(amiss)} It may lack no "
            "more than a classifier in whose place heads act."
        )
    install_(module.model, {name: named.read(name) for name in named.names if name not in aside})
    module.heads.instead_of = tuple(aside)
    module.installed, module.provenance = recipe, partial(Provenance.from_metadata, opened.metadata)
    module.contents = Contents.of(module.model, named.headers, tuple(about.tasks))
    return module

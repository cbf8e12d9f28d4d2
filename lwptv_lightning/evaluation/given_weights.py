"""A `MergeModule` that holds given weights for a while, such as an expert's, so that these are evaluated as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from lwptv_lightning.evaluation.module import MergeModule
from lwptv_lightning.merging import install_, installable, snapshot

_TOLD = ("_vectors", "options", "installed", "plan", "treatment", "provenance", "contents", "measured")
"""What a module says of the merge that it holds."""


def weights_of(module: MergeModule, task: str | None = None) -> dict[str, Tensor]:
    """Return the weights of a task's expert, or of the base, as far as the module's model takes them.

    What an expert has not, such as tensors that its adapter leaves alone, is the base's; its classifier, where the
    tasks' have shapes of their own, is a head of the module.

    Example:
        >>> import torch
        >>> from lwptv_lightning import TaskVectors
        >>> expert = {"weight": torch.eye(2), "bias": torch.ones(2)}
        >>> model = torch.nn.Linear(2, 2)
        >>> module = MergeModule(model, TaskVectors.open(model, {"a": expert}))
        >>> weights_of(module, "a")["bias"]
        tensor([1., 1.])
    """
    vectors = module.vectors
    base, *experts = vectors.checkpoints
    own = base if task is None else experts[vectors.tasks.index(task)]
    names = installable(module.model, vectors)
    theirs = {name for name in names if name in own.headers and own.headers[name].shape == base.headers[name].shape}
    return {name: (own if name in theirs else base).read(name) for name in names}


@contextmanager
def holding(module: MergeModule, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a module be evaluated with given weights in place of a merge; afterwards it is as it was.

    Example:
        >>> import torch
        >>> from lwptv_lightning import TaskVectors
        >>> model, expert = torch.nn.Linear(1, 1), {"weight": torch.ones(1, 1), "bias": torch.ones(1)}
        >>> module = MergeModule(model, TaskVectors.open(model, {"a": expert}))
        >>> with holding(module, weights_of(module, "a")):
        ...     module(torch.tensor([[2.0]])).item()
        3.0
    """
    told = {name: getattr(module, name) for name in _TOLD}
    before = snapshot(module.model, weights)
    try:
        install_(module.model, weights)
        # Then an evaluation takes it for a module that was loaded, and merges nothing.
        module._vectors, module.options, module.installed = None, {}, module.recipe
        yield
    finally:
        install_(module.model, before)
        for name, value in told.items():
            setattr(module, name, value)

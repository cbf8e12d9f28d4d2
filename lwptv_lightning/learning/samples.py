"""The samples that are learnt on: of one loader a task and no other, read once when a fit starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lwptv_lightning.evaluation import (
    MergeModule,
    count_samples,
    first_samples,
    inputs_of,
    naming_loader,
    replicas_of,
    take_samples,
    transferred,
)
from lwptv_lightning.registry import UnknownNameError, nearest, own_tasks


def require_own_loaders(module: MergeModule, loaders: Any) -> dict[str, Any]:
    """Return the loader of each task, in the tasks' order; nothing of them is read.

    Raises:
        TypeError: They are no dict.
        UnknownNameError: One is of no task, such as an OOD set, or has no head.
        ValueError: A task has none or several, or classes are not what is learnt.
    """
    tasks = module.vectors.tasks
    known = [f"id/{task}" for task in tasks]
    if not isinstance(loaders, Mapping):
        given = type(loaders).__name__
        raise TypeError(f"train on a dict of loaders, one a task such as {{'{known[0]}': loader}}, not a {given}.")
    own = own_tasks([each for each in loaders if isinstance(each, str) and each.startswith("id/")], tasks)
    for loader in loaders:
        if isinstance(loader, str) and loader.startswith("ood/"):
            raise ValueError(
                f"loader {loader!r} is of another domain: nothing is learnt but on data of the tasks, "
                f"{', '.join(known)}."
            )
        if loader not in own:
            raise UnknownNameError("loader of a task", loader, known)
    for task, loader in zip(tasks, known, strict=True):
        named = [each for each in own if own[each] == task]
        if not named:
            raise ValueError(
                f"task {task!r} has no loader {loader!r}; each task needs its own data."
                f"{nearest(loader, map(str, loaders))}"
            )
        if len(named) > 1:
            raise ValueError(f"task {task!r} has the loaders {' and '.join(map(repr, named))}; give one a task.")
    named = sorted(own, key=lambda loader: tasks.index(own[loader]))
    module.heads.require_for(named)
    module.require_logits()
    module.metric_choice.require_of_classes("LayerGates", module.heads_for(named))
    return {loader: loaders[loader] for loader in named}


def require_whole_models(trainer: Trainer) -> None:
    """Raise a `ValueError` where a trainer's processes hold one model together."""
    if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
        name = type(trainer.strategy).__name__
        raise ValueError(f"LayerGates runs a whole model on each process, and {name} shards it; use strategy='ddp'.")


def read_samples(
    trainer: Trainer, module: MergeModule, loaders: Mapping[str, Any], count: int, seed: int
) -> dict[str, Any]:
    """Return the inputs of the first samples of each loader, as the trainer hands batches to a step.

    Those that float are of the dtype of what is trained, in which the model runs, whatever its own is.

    Args:
        trainer: That begins a fit.
        module: The merge module.
        loaders: Name to loader.
        count: How many samples of each; of a loader with fewer, all, which is said.
        seed: Of the order of shuffled loaders.
    """
    dtype: Any = trainer.lightning_module.dtype

    def in_dtype(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    batches = first_samples(module, loaders, count, replicas_of(trainer), seed)
    inputs = {}
    for loader, batch in transferred(trainer, batches).items():
        with naming_loader(loader):
            given = take_samples(inputs_of(module, batch), 0, count)
            inputs[loader] = apply_to_collection(given, Tensor, in_dtype)
        if (size := count_samples(inputs[loader])) < count:
            rank_zero_info(f"LayerGates learns on the {size} samples of loader {loader!r}, not on {count}.")
    return inputs


class Steps:
    """The batches of an epoch: numbers, since samples are drawn by the step; a fit that is resumed goes on anywhere.

    Example:
        >>> list(Steps(3))
        [0, 1, 2]
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))

    def __len__(self) -> int:
        return self.size

    def state_dict(self) -> dict[str, Any]:
        """Return nothing, by which a trainer takes this for a loader that can be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing."""

"""Task vectors: one base and T fine-tuned checkpoints, aligned by name and stacked one tensor at a time."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lwptv_lightning.checkpoints import (
    Checkpoint,
    CheckpointSource,
    TensorHeader,
    fingerprints,
    holding,
)
from lwptv_lightning.functional import device_of, require_usable
from lwptv_lightning.registry import UnknownNameError, require_kind, require_known, require_texts
from lwptv_lightning.task_vectors.align import align, require_fit
from lwptv_lightning.task_vectors.integers import require_dequantized
from lwptv_lightning.task_vectors.sample import Sample
from lwptv_lightning.task_vectors.stacks import StoredStack, whole
from lwptv_lightning.task_vectors.state import state_among
from lwptv_lightning.task_vectors.ties import find_ties, require_not_apart, untied


class TaskVectors:
    """The differences between T fine-tuned models and the base they were tuned from.

    ``tau_t = theta_t - theta_0``. No difference is kept: each `stack` is computed from the mapped files when asked
    for, so that the task vectors of a model never stand in memory as a whole.

    Use `TaskVectors.open`, which opens and checks the checkpoints.

    Args:
        base: The pre-trained weights ``theta_0``.
        experts: Task name to fine-tuned weights, with the tensors of the base.
        names: The tensors to merge.
        copied: The tensors that all checkpoints share but that stay the base's, such as integer counters and masks.
        classifiers: Module paths of task-specific classifiers, which are not merged; see `classifier_state`.
        averaged: The tensors that are no weights but take part in a merge as means over the tasks, whatever the rule,
            its scale and the saliency: running statistics of batch normalisation.
        tied: Further names of tied weights, each mapped to the one among ``names`` under which it is merged.
        excluded: Globs of the tensors that may differ and are not merged.
        resized: The tensors that were brought to another image size, in the base or in a task.
    """

    def __init__(
        self,
        base: Checkpoint,
        experts: Mapping[str, Checkpoint],
        names: Sequence[str],
        copied: Sequence[str] = (),
        classifiers: Sequence[str] = (),
        averaged: Sequence[str] = (),
        tied: Mapping[str, str] | None = None,
        excluded: Sequence[str] = (),
        resized: Sequence[str] = (),
    ) -> None:
        self._base = base
        self._experts = dict(experts)
        self.names = tuple(names)
        self.copied = tuple(copied)
        self.classifiers = tuple(classifiers)
        self.averaged = tuple(averaged)
        self.tied = dict(tied or {})
        self.excluded = tuple(excluded)
        self.resized = tuple(resized)

    @classmethod
    def open(
        cls,
        base: CheckpointSource,
        tasks: Mapping[str, CheckpointSource],
        *,
        exclude: Sequence[str] = (),
        model: nn.Module | None = None,
        prefix: str | None = None,
        ema: bool | None = None,
        resize_position_embedding: bool = False,
    ) -> TaskVectors:
        """Open the checkpoints, check that they belong together, and read no more than headers.

        Every floating tensor that no ``exclude`` pattern matches is merged; those that are no weights, such as running
        statistics, as `averaged` tells. All others, integer counters among them, stay what they are in the base.

        Args:
            base: The pre-trained weights; see `lwptv_lightning.checkpoints.open_checkpoint` for the formats.
            tasks: Task name to fine-tuned weights, to a LoRA adapter of PEFT, or to a task vector.
            exclude: Glob patterns of tensor names that are not merged and may differ, such as ``("head.*",)``. A tied
                weight is excluded by any of its names.
            model: The module that the weights belong to. Its timm classifier is excluded where its shape differs
                between the checkpoints, and kept as each task's head (`classifier_state`). Its names are also what
                checkpoints of other libraries are converted to; the base's names without it. Its buffers are no
                weights; without a model, a base that is a module tells its own.
            prefix: What the wanted names start with in Lightning checkpoints, such as ``"model."``; found by
                comparing names when not given.
            ema: Whether to take the averaged weights of the tasks' training checkpoints; see `open_checkpoint`.
            resize_position_embedding: Whether to resample position embeddings (absolute ones, and tables of relative
                biases) of another image size, by timm's functions, to the size of the model or, without one, of the
                base.

        Raises:
            ValueError: ``tasks`` is empty or an ``exclude`` pattern matches no tensor.
            CheckpointError: A checkpoint misses a tensor, has one more, or one of another shape or kind; a task
                vector was made from another base; or weights are quantized and not the same.

        Warns:
            UserWarning: A task's weights equal the base's.

        Example:
            >>> base = {"w": torch.zeros(2), "steps": torch.tensor(7)}
            >>> vectors = TaskVectors.open(base, {"a": {"w": torch.ones(2), "steps": torch.tensor(9)}})
            >>> vectors.tasks, vectors.names, vectors.stack("w")
            (('a',), ('w',), tensor([[1., 1.]]))
        """
        options: dict[str, Any] = {"exclude": exclude, "model": model, "prefix": prefix, "ema": ema}
        found = align(base, tasks, **options, resize_position_embedding=resize_position_embedding)
        for task, expert in found.experts.items():
            require_dequantized(task, expert, found.base, found.ignored)
            require_fit(task, expert, found.base.headers, found.ignored)
        names, copied = found.shared()
        more: dict[str, Any] = {"excluded": found.ignored, "resized": found.resized}
        vectors = cls(found.base, found.experts, names, copied, found.classifiers, **more)
        # A base that is a module may have been tuned to experts whose weights are not tied any more.
        own = base if isinstance(base, nn.Module) else None
        vectors = vectors.knowing(own, strict=False) if model is None else vectors.knowing(model)
        for task in filter(vectors._equals_base, vectors.tasks):
            warnings.warn(f"task {task!r} equals the base: its task vector is zero.", stacklevel=2)
        return vectors

    @property
    def tasks(self) -> tuple[str, ...]:
        """The task names, in the order given; the first dimension of every stack."""
        return tuple(self._experts)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The base and the tasks' fine-tuned models, as they were opened."""
        return (self._base, *self._experts.values())

    @property
    def shared_names(self) -> tuple[str, ...]:
        """The tensors that base and tasks have in common: all but the excluded ones."""
        return self.names + tuple(self.tied) + self.averaged + self.copied

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """Shape and dtype of every tensor of the base, merged or not."""
        return self._base.headers

    def base(self, name: str) -> Tensor:
        """Return a tensor of the base on the CPU, in its own dtype; it must not be written to."""
        return self._base.read(name)

    def expert(self, task: str, name: str) -> Tensor:
        """Return a tensor of a task's fine-tuned model on the CPU; it must not be written to."""
        return self._expert(task).read(name)

    def stack(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the T task vectors of one tensor, where its base is held: on the CPU, but for `load`.

        Args:
            name: One of `names` or `averaged`.
            dtype: The dtype to subtract in.

        Returns:
            Fine-tuned minus base, shape ``(T, *shape)``, freshly allocated.

        Raises:
            CheckpointError: A weight is NaN or infinite.
        """
        stack = self.open_stack(name)
        return whole(stack, stack.base.new_empty(0, dtype=dtype))

    def open_stack(self, name: str) -> StoredStack:
        """Return the T task vectors of one of `names` or `averaged`, to be read in blocks.

        Raises:
            UnknownNameError: The base has no such tensor.
        """
        if not isinstance(name, str) or name not in self._base.headers:
            raise UnknownNameError("tensor", name, self.names)
        return StoredStack(name, self._base, tuple(self._experts.values()))

    def select(self, tasks: Iterable[str]) -> TaskVectors:
        """Return the task vectors of some tasks, in the order given."""
        experts = {task: self._expert(task) for task in require_texts("tasks", tasks, "names of tasks")}
        return self._with(experts=experts)

    def knowing(self, model: nn.Module | None, *, strict: bool = True) -> TaskVectors:
        """Return the same task vectors with all set apart that is no weight, or a tied weight's further name.

        A model tells by its buffers and its own ties; without one names and values tell, as far as they can. Where
        ``strict``, the model's ties must hold in all checkpoints.

        Raises:
            CheckpointError: A checkpoint holds different values of what is one tensor in the model, or only one of its
                names is excluded.
        """
        require_kind("model", model, nn.Module | None, "a module")
        if model is not None and strict:
            shared = set(self.shared_names)
            require_not_apart(model, self.names, [name for name in self.headers if name not in shared])
        state = state_among(self.names, model, self.base)
        weights = tuple(name for name in self.names if name not in state)
        tied = find_ties(self._base, self._experts, weights, model, strict=strict)
        if not state and not tied:
            return self
        return self._with(
            names=tuple(name for name in weights if name not in tied),
            averaged=self.averaged + tuple(name for name in self.names if name in state.averaged),
            copied=self.copied + tuple(name for name in self.names if name in state.computed),
            tied={name: tied.get(first, first) for name, first in self.tied.items()} | tied,
        )

    def names_of(self, name: str) -> tuple[str, ...]:
        """Return all names of a tensor, the one under which it is merged first."""
        return (name, *self._further_names.get(name, ()))

    @cached_property
    def _further_names(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for other, first in self.tied.items():
            found.setdefault(first, []).append(other)
        return found

    def without_weights(self) -> TaskVectors:
        """Return the task vectors of `averaged` alone; what they merge into is the base with these means in it."""
        return self._with(names=(), tied={})

    def load(self, device: torch.device | str = "cpu") -> TaskVectors:
        """Return the same task vectors with the tensors that are merged held in a device's memory, in their own dtype.

        Worth its memory, ``T + 1`` models, where the same checkpoints are merged on that device again and again.

        Example:
            >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}}).load()
            >>> vectors.stack("w")
            tensor([[1., 1.]])
        """
        device = device_of("device", device)
        require_usable("device", device)

        def held(checkpoint: Checkpoint) -> Checkpoint:
            return holding(checkpoint, self.names + self.averaged, lambda tensor: tensor.to(device, copy=True))

        return self._with(base=held(self._base), experts={task: held(own) for task, own in self._experts.items()})

    def with_task(self, task: str, source: CheckpointSource) -> TaskVectors:
        """Return the task vectors with one task more, the last.

        Args:
            task: Its name.
            source: Its fine-tuned weights. Tensors beyond `shared_names` are left aside.

        Raises:
            ValueError: There is a task of that name.
            CheckpointError: A tensor is missing, or of another shape or kind.
        """
        self.require_new(task)
        shared = {name: self.headers[name] for name in self.shared_names}
        others = [glob.escape(name) for name in self.headers if name not in shared]
        expert = align(self._base, {task: source}, exclude=others).experts[task]
        require_dequantized(task, expert, self._base, others)
        require_fit(task, expert.renamed({name: name for name in expert.names if name in shared}), shared)
        apart = untied(expert, self.tied)
        tied = {name: first for name, first in self.tied.items() if name not in apart}
        return self._with(experts={**self._experts, task: expert}, names=self.names + tuple(apart), tied=tied)

    def require_new(self, task: str) -> None:
        """Raise a `ValueError` where there is a task of that name."""
        require_kind("task", task, str, "a name")
        if task in self._experts:
            raise ValueError(f"task {task!r} is there already; leave it out with select(...).")

    def fingerprints(self, like: str | None = None) -> tuple[str, dict[str, str]]:
        """Return the fingerprint of the base and of each task's weights, by the algorithm of one that is given."""
        found = fingerprints({None: self._base, **self._experts}, like)
        return found.pop(None), found

    def require_unchanged(self) -> None:
        """Raise a `CheckpointError` where a file that is read from was changed since it was opened."""
        for checkpoint in self.checkpoints:
            checkpoint.require_unchanged()

    def classifier_state(self, task: str) -> dict[str, Tensor]:
        """Return a task's own classifier where it is not merged, by the tensors' full names."""
        expert = self._expert(task)
        paths = tuple(f"{path}." for path in self.classifiers)
        return {name: expert.read(name) for name in expert.names if name.startswith(paths)}

    def _with(self, **changes: Any) -> TaskVectors:
        own: dict[str, Any] = {"base": self._base, "experts": self._experts, "names": self.names, "copied": self.copied}
        own |= {name: getattr(self, name) for name in ("classifiers", "averaged", "tied", "excluded", "resized")}
        return TaskVectors(**{**own, **changes})

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against a task's weights: another base, outliers such as zeroed tensors, masks that differ.

        A sample is judged as `lwptv_lightning.inspection.check` judges all; a merge warns of what is found.
        """
        return self.sample.doubts()

    @cached_property
    def sample(self) -> Sample:
        """What is known of the weights from a few of their elements, which are read once."""
        return Sample(self._base, self._experts, self.names, self.copied)

    def _expert(self, task: str) -> Checkpoint:
        require_known("task", task, self._experts)
        return self._experts[task]

    def _equals_base(self, task: str) -> bool:
        # The smallest tell soonest.
        for name in sorted(self.names or self.averaged, key=lambda name: self.headers[name].numel):
            if any(bool(difference.any()) for _, difference in self._experts[task].differences(name, self._base)):
                return False
        return True

    def __len__(self) -> int:
        return len(self._experts)

    def __repr__(self) -> str:
        return f"TaskVectors({self._base.source!r}, tasks={list(self.tasks)}, {len(self.names)} tensors)"

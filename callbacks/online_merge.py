"""`OnlineMerge`: while a model is fine-tuned, validate what it would be merged with other experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from lwptv_lightning.checkpoints import Provenance
from lwptv_lightning.evaluation import (
    MergeModule,
    Replicas,
    batch_limit,
    callbacks_of,
    draws_kept,
    in_precision,
    owner_of,
    replicas_of,
    require_loaders,
    shared_loaders,
    tell_reduced_,
    transferred,
    validating,
    with_own_workers,
)
from lwptv_lightning.functional import plain_name, plain_state
from lwptv_lightning.merging import (
    Undo,
    exchange_,
    find_backbone,
    gather_state,
    named_submodule,
    require_coefficients,
)
from lwptv_lightning.registry import (
    encodable,
    require_kind,
    require_whole,
)
from lwptv_lightning.task_vectors import TaskVectors


class OnlineMerge(Callback):
    """Merge the model in training with other experts and log how the merged model does on ID and OOD data.

    Logs the figure of every loader and the averages as ``merged/id/<task>``, ``merged/ood/<name>``, ``merged/id/avg``
    and ``merged/ood/avg``, with groups also ``merged/ood/<group>/avg``, which `ModelCheckpoint` and `EarlyStopping` can
    monitor. The run is, to the bit, the one without this callback: the merged weights go into a model of their own, and
    random states are put back afterwards, those of torch, NumPy, Python and the loaders' generators. The weights in
    training are those that Lightning would validate, wherever this callback stands in the list: the averaged ones where
    ``WeightAveraging`` runs, and never those that another callback merged. Batches go through the hooks of the run's
    module and data, which are told that this is a validation.

    Args:
        module: Model, task vectors of the other experts, recipe and heads. Its model is of the architecture in
            training but another object. (Building one draws random numbers: do it before you seed the run.)
        loaders: Loaders named ``id/<task>`` and ``ood/<name>``, or in groups. Over several processes each sample counts
            once.
        task: The name under which the model in training joins the task vectors.
        backbone: Path of the submodule in training that is merged, such as ``"model.encoder"``; by default the only one
            with all merged tensors.
        head: Path of the submodule in training that is the task's head, which the module's head of that name follows;
            ``""`` where that head is to stay as it is, though one of its shapes is trained.
        every_n_epochs: Evaluate at the first validation, and at those of each n-th epoch; without validation
            loaders, at the ends of these epochs.
        every_n_steps: Evaluate after every n optimiser steps instead.

    Raises:
        ValueError: A loader or an interval is wrong, or the task is among the experts; or, when training starts, the
            module shares tensors with the one in training, several submodules fit, or
            another such callback logs the same figures.
        UnknownNameError: No such submodule, when training starts.

    Example:
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> from lwptv_lightning import TaskVectors
        >>> model = nn.Linear(2, 2)
        >>> experts = TaskVectors.open(model, {"a": {"weight": torch.eye(2), "bias": torch.zeros(2)}})
        >>> data = TensorDataset(torch.zeros(4, 2), torch.zeros(4).long())
        >>> OnlineMerge(MergeModule(model, experts), {"id/a": DataLoader(data)}, task="b").every_n_epochs
        1
    """

    def __init__(
        self,
        module: MergeModule,
        loaders: Mapping[str, DataLoader[Any]],
        *,
        task: str,
        backbone: str = "",
        head: str | None = None,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
    ) -> None:
        for name, interval in {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps}.items():
            if interval is not None:
                require_whole(name, interval, 1)
        require_kind("module", module, MergeModule, "a MergeModule")
        require_kind("task", task, str, "a task's name")
        require_kind("backbone", backbone, str, "the path of a submodule")
        require_kind("head", head, str | None, "the path of a submodule")
        if task in module.vectors.tasks:
            raise ValueError(f"task {task!r} is among the experts already; give the others: vectors.select([...]).")
        if head:
            module.head(task)
        self.module = module
        self.loaders = {name: with_own_workers(loader) for name, loader in require_loaders(loaders).items()}
        module.prepare(self.loaders, Replicas())
        module.require_logits()
        self.task = task
        self.backbone = self._backbone = backbone
        self.head = head
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self._last_step = 0
        self._has_run = False

    place = "reads"  # after what averages; see `lwptv_lightning.evaluation.owner_of`

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Bring the callbacks that deal with weights in order."""
        owner_of(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the submodules' paths, and count steps from where the run starts or goes on."""
        self._require_apart(trainer, pl_module)
        self._require_head(pl_module)
        named_submodule(pl_module, self.backbone)
        if self.head:
            named_submodule(pl_module, self.head, "head")
        if not self.backbone:
            vectors = self.module.vectors
            shapes = {name: vectors.headers[name].shape for name in vectors.shared_names}
            self._backbone = find_backbone(pl_module, shapes, otherwise="")
        require_coefficients(self.module.vectors, self.module.recipe, self.module.layers, self.task)
        self._last_step = trainer.global_step
        self._has_run = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate and log, where it is due after a number of steps."""
        if self.every_n_steps is not None:
            # A step may span several batches, and several optimisers make several steps of one batch.
            if trainer.global_step // self.every_n_steps > self._last_step // self.every_n_steps:
                pl_module.log_dict(self.evaluate(trainer))
            self._last_step = trainer.global_step

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate and log, where it is due at a validation."""
        # The last hook that may log before checkpoints are saved and training is stopped early.
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and self._is_due(trainer):
            pl_module.log_dict(self.evaluate(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate and log, where it is due and the trainer does not validate."""
        if not trainer.enable_validation and self._is_due(trainer):
            pl_module.log_dict(self.evaluate(trainer))

    def evaluate(self, trainer: Trainer) -> dict[str, float]:
        """Merge the weights as they are now and return the figures as logged; all the trainer's processes call this."""
        with self.merged_now(trainer):
            loaders = shared_loaders(trainer, self.loaders)
            self.module.prepare(loaders, replicas_of(trainer))
            for loader, batches in loaders.items():
                for batch_idx, batch in enumerate(islice(batches, batch_limit(trainer))):
                    batch = transferred(trainer, batch)
                    with trainer.precision_plugin.val_step_context():
                        self.module.count(loader, batch, batch_idx)
            figures = self.module.metrics.compute() | self.module.metrics.averages(self.module.expert_accuracy)
        logged = {f"merged/{encodable(name)}": value for name, value in figures.items()}
        tell_reduced_(logged)
        return logged

    @contextmanager
    def merged_now(self, trainer: Trainer) -> Iterator[TaskVectors]:
        """Let the module hold the merge of the weights as they are now while the block runs, ready to be evaluated.

        The run is not disturbed: what the block draws, and modes that it changes, are put back.

        Yields:
            The task vectors that were merged, with that of the weights in training.
        """
        self._has_run = True
        # Nothing made here may be an inference tensor: the next training step could not use it.
        with (
            draws_kept(self.loaders.values()),
            validating(trainer, trainer.lightning_module),
            in_precision(trainer, self.module),
            torch.inference_mode(False),
            torch.no_grad(),
            Undo() as undo,
        ):
            undo.add(self._rest_)
            self.module.to(trainer.strategy.root_device).eval()
            yield self._merge_weights_of(trainer)
            undo.take_back()

    def _merge_weights_of(self, trainer: Trainer) -> TaskVectors:
        """Merge the weights that a trainer has now, with a head that is of the same ones; return the task vectors."""
        running: Any = trainer.model
        with Undo() as undo:
            with owner_of(trainer).own_weights(trainer, trainer.lightning_module):
                head = gather_state(running, self.head) if self.head else {}
                backbone = gather_state(running, self._backbone)
                vectors = self.module.vectors.with_task(self.task, backbone)
                if self.head:
                    exchange_(self.module.head(self.task), head, undo)
            self.module.merge_(vectors=vectors)
            undo.keep()
        return vectors

    def _rest_(self) -> None:
        # Between evaluations the device is the training's, and the module holds no copy of its weights.
        self.module.cpu().provenance = Provenance

    def _is_due(self, trainer: Trainer) -> bool:
        ends_span = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        return self.every_n_steps is None and (ends_span or not self._has_run)

    def _require_head(self, pl_module: LightningModule) -> None:
        """Refuse a head that stays as it is, where one of its shapes is trained for the task."""
        named = {self.module.head_of(loader) for loader in self.loaders}
        if self.head is not None or self.task not in named or self.task not in self.module.heads:
            return
        shapes = {name: value.shape for name, value in self.module.head(self.task).state_dict().items()}
        prefix = f"{plain_name(self._backbone)}." if self._backbone else ""
        merged = {prefix + name for name in self.module.vectors.shared_names}
        for path, submodule in pl_module.named_modules() if shapes else ():
            own = plain_state(submodule, keep_vars=True)
            is_merged = merged.issuperset(f"{plain_name(path)}.{name}" for name in own)
            if is_merged or {name: value.shape for name, value in own.items()} != shapes:
                continue
            if any(value.requires_grad for value in own.values()):
                raise ValueError(
                    f"the head of {self.task!r} would stay as it is, while {plain_name(path)!r}, of the same shapes, "
                    f"is trained: say head={plain_name(path)!r} for the one that it follows, or head='' for none."
                )

    def _require_apart(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trained = {id(tensor): name for name, tensor in pl_module.state_dict(keep_vars=True).items()}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            if id(tensor) in trained:
                raise ValueError(
                    f"OnlineMerge: {name!r} of its module is {trained[id(tensor)]!r} of the module in training itself, "
                    "which merging would overwrite; give it a copy: copy.deepcopy(...)."
                )
        others = [each for each in callbacks_of(trainer) if isinstance(each, OnlineMerge) and each is not self]
        if any(other.loaders.keys() & self.loaders.keys() for other in others):
            raise ValueError(
                f"two OnlineMerge log the same figures, such as 'merged/{next(iter(self.loaders))}'; give each its own "
                "loaders, or run one of them at a time."
            )

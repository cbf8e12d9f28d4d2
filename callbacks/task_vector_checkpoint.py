"""`TaskVectorCheckpoint`: store what a fine-tuning run changed, as a task vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning import __version__ as lightning_version
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lwptv_lightning.checkpoints import (
    CheckpointError,
    Provenance,
    fingerprint,
    open_checkpoint,
    tensor_fingerprints,
    write_safetensors,
)
from lwptv_lightning.evaluation import callbacks_of, heads_path, on_rank_zero, owner_of, write_heads
from lwptv_lightning.functional import plain_name, sum_dtype
from lwptv_lightning.merging import gather_state, in_dtype, named_submodule
from lwptv_lightning.registry import (
    require_finite,
    require_kind,
    require_known,
)
from lwptv_lightning.task_vectors import state_among

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BASE_FILE = "base.safetensors"
TASK_VECTOR_FILE = "task_vector.safetensors"


class TaskVectorCheckpoint(Callback):
    """Store the task vector of a fine-tuning run: a submodule's weights minus those that it started from.

    ``tau = theta - theta_0``, of the floating tensors. The folder holds ``base.safetensors``, the starting weights,
    written once, and ``task_vector.safetensors``, written anew whenever a `ModelCheckpoint` saves and when training
    ends. Both appear under their names only when complete. The task vector's metadata name the task, the fingerprints
    of its base and of each tensor of it, the epoch and step, the trainer's metrics and the versions of the libraries.
    By the tensors' fingerprints, runs from one backbone with heads of their own go together.

    The weights are those that a `ModelCheckpoint` saves, wherever this callback stands in the list: the averaged ones
    where Lightning's ``WeightAveraging`` runs, and never those that another callback merged for a validation.

    A run resumed with ``ckpt_path`` goes on from its original base: the checkpoint remembers the fingerprint and the
    folder the weights. On several processes the first one writes, and a failure there is raised on all of them.

    Args:
        folder: Where to write; made where it does not exist.
        task: The task's name, for the file.
        backbone: Path of the submodule whose task vector is stored, such as ``"model.encoder"``; by default all of it.
        head: Path of the submodule that is the task's head, where it stands outside of the backbone. Its weights are
            written whole to ``heads.safetensors``, with each task vector, for ``MergeModule(heads={task: <file>})``.
        dtype: Of the stored task vector: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        density: The fraction in (0, 1] of entries to keep, the largest in magnitude over all weights; others are zeros.
            Running statistics are no weights, and stay whole.
        at_end: Whether to store when training ends, too. Without it the folder holds the task vector of the last
            save, which is the best one's where ``ModelCheckpoint(monitor=..., save_top_k=1)`` saves.

    Raises:
        UnknownNameError: No such dtype; or, when training starts, no such submodule.
        ValueError: ``density`` is out of its range, the resumed checkpoint was made without this callback, or another
            one writes to the same folder.
        CheckpointError: The folder of a resumed run does not hold its starting weights.

    Warns:
        UserWarning: A `ModelCheckpoint` saves weights only; Lightning asks no callback then.

    Example:
        >>> TaskVectorCheckpoint("greek", "greek", backbone="model.encoder", dtype="bfloat16").state_dict()
        {'base_fingerprint': None}
    """

    def __init__(
        self,
        folder: str | Path,
        task: str,
        *,
        backbone: str = "",
        head: str | None = None,
        dtype: str = "float32",
        density: float = 1.0,
        at_end: bool = True,
    ) -> None:
        require_known("dtype", dtype, DTYPES)
        require_kind("folder", folder, str | Path, "a path")
        require_kind("task", task, str, "a task's name")
        require_kind("backbone", backbone, str, "the path of a submodule")
        require_kind("head", head, str | None, "the path of a submodule")
        if not 0 < require_finite("density", density) <= 1:
            raise ValueError(f"density must be in (0, 1], not {density}.")
        self.folder = Path(folder)
        self.task = task
        self.backbone = backbone
        self.head = head
        self.dtype = dtype
        self.density = density
        self.at_end = at_end
        self._base_fingerprint: str | None = None

    @property
    def state_key(self) -> str:
        """What tells the states of several such callbacks in one checkpoint apart."""
        return f"{type(self).__qualname__}{ {'task': self.task, 'backbone': self.backbone} }"

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to know its starting weights by."""
        return {"base_fingerprint": self._base_fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the starting weights of the run that is resumed."""
        self._base_fingerprint = state_dict["base_fingerprint"]

    place = "reads"  # after what averages; see `lwptv_lightning.evaluation.owner_of`

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Bring the callbacks that deal with weights in order."""
        owner_of(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the starting weights, or find those of the run that is resumed."""
        # Not in `on_fit_start`: sharded strategies load the checkpoint of a resumed run after it.
        for other in callbacks_of(trainer):
            if isinstance(other, TaskVectorCheckpoint) and other is not self and other.folder == self.folder:
                raise ValueError(f"two TaskVectorCheckpoint write to {self.folder}; give each a folder of its own.")
        named_submodule(pl_module, self.backbone)
        if self.head is not None:
            named_submodule(pl_module, self.head, "head")
        if any(isinstance(other, ModelCheckpoint) and other.save_weights_only for other in callbacks_of(trainer)):
            rank_zero_warn(
                "a ModelCheckpoint has save_weights_only=True, with which Lightning asks no callback: "
                "TaskVectorCheckpoint stores nothing at its saves."
            )
        if self._base_fingerprint is not None:
            on_rank_zero(trainer, self._check_base)
        elif trainer.ckpt_path is not None:
            raise ValueError(
                f"{trainer.ckpt_path} was made without TaskVectorCheckpoint, so that the weights its run started from "
                "are not known. Start the run anew with the callback."
            )
        else:
            self._base_fingerprint = self._with_weights(trainer, self._write_base, averaged=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the task vector."""
        # A checkpoint can be saved before or after training, when there is nothing to store.
        if self._base_fingerprint is not None and (trainer.training or trainer.validating):
            self._with_weights(trainer, partial(self._write_task_vector, trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the task vector."""
        # Not in `on_fit_end`: the strategy has let go of the processes by then.
        if self.at_end:
            self._with_weights(trainer, partial(self._write_task_vector, trainer))

    def _with_weights(
        self, trainer: Trainer, action: Callable[[dict[str, Tensor], dict[str, Tensor]], Any], *, averaged: bool = True
    ) -> Any:
        """Run something on the first process with the run's whole weights as they are now, and with its head's."""
        with owner_of(trainer).own_weights(trainer, trainer.lightning_module, averaged=averaged):
            model = cast(Any, trainer.model)
            weights = gather_state(model, self.backbone, on_rank_zero=True)
            head = {} if self.head is None else gather_state(model, self.head, on_rank_zero=True)
            return on_rank_zero(trainer, partial(action, weights, head))

    def _write_base(self, weights: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> str:
        # With each tensor's fingerprint, so that no save computes them anew.
        made = Provenance(kind="base", base_tensors=tensor_fingerprints(open_checkpoint(weights)))
        path = write_safetensors(weights, self.folder / BASE_FILE, made.to_metadata())
        return fingerprint(open_checkpoint(path))

    def _check_base(self) -> None:
        path = self.folder / BASE_FILE
        if not path.exists():
            raise CheckpointError(f"{path}: the weights that the resumed run started from are gone; put them back.")
        found = fingerprint(open_checkpoint(path), self._base_fingerprint)
        if found != self._base_fingerprint:
            raise CheckpointError(
                f"{path}: these are not the weights that the resumed run started from (fingerprint {found[:12]}, "
                f"expected {str(self._base_fingerprint)[:12]}). Each run needs a folder of its own."
            )

    def _write_task_vector(self, trainer: Trainer, weights: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> None:
        base = open_checkpoint(self.folder / BASE_FILE)
        floating = [name for name in base.names if base.headers[name].dtype.is_floating_point]
        wide = {name: sum_dtype(base.headers[name].dtype) for name in floating}
        vector = {name: weights[name].to(wide[name]) - base.read(name).to(wide[name]) for name in floating}
        state = state_among(floating, named_submodule(trainer.lightning_module, self.backbone))
        _keep_largest_({name: tensor for name, tensor in vector.items() if name not in state}, self.density)
        provenance = Provenance(
            kind="task_vector",
            base=self._base_fingerprint,
            base_tensors=Provenance.of(base).base_tensors or tensor_fingerprints(base),
            tasks={self.task: None},
            versions=Provenance.current_versions(lightning=lightning_version),
            density=self.density,
            progress={"epoch": trainer.current_epoch, "step": trainer.global_step},
            metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
        )
        stored = {name: in_dtype(name, tensor, DTYPES[self.dtype]) for name, tensor in vector.items()}
        write_safetensors(stored, self.folder / TASK_VECTOR_FILE, provenance.to_metadata())
        if self.head is not None:
            module = named_submodule(trainer.lightning_module, self.head, "head")
            write_heads({self.task: module}, heads_path(self.folder), self._places(), {self.task: head})

    def _places(self) -> dict[str, tuple[str, ...]]:
        """Return in the place of which of the backbone's modules the head acts; none where it stands outside."""
        outer, inner = (f"{plain_name(path)}." if path else "" for path in (self.backbone, self.head))
        return {self.task: (inner.removeprefix(outer)[:-1],) if inner.startswith(outer) else ()}


def _keep_largest_(vector: dict[str, Tensor], density: float) -> None:
    """Zero all but the largest magnitudes over all tensors, in place; of equal ones all stay."""
    if density == 1 or not vector:
        return
    magnitudes = torch.cat([tensor.abs().flatten() for tensor in vector.values()])
    kept = max(round(len(magnitudes) * density), 1)
    threshold = magnitudes.kthvalue(len(magnitudes) - kept + 1).values
    for tensor in vector.values():
        tensor[tensor.abs() < threshold] = 0

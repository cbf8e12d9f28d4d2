"""`MergeModule`: a LightningModule that is the merged model, validated over ID and OOD loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torchmetrics import Metric, MetricCollection

from lwptv_lightning.checkpoints import require_safetensors_path, some_of, write_safetensors
from lwptv_lightning.engine import ALONE, Ranks
from lwptv_lightning.evaluation.loaders import (
    is_iterable,
    repeated_loaders,
    require_loaders,
    sample_positions,
    split_name,
)
from lwptv_lightning.evaluation.metrics import LoaderMetrics, averages
from lwptv_lightning.layers import Layers, trace_layers
from lwptv_lightning.merging import PruningPlan, materialize_, merge_into_, metadata_of, plan_pruning, whole_state
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import UnknownNameError, nearest
from lwptv_lightning.rules import DataStatistics
from lwptv_lightning.task_vectors import TaskVectors


class MergeModule(LightningModule):
    """The model that a recipe makes of a base and its task vectors.

    ``trainer.validate(module, loaders)`` merges on the trainer's device, installs the result and validates it over
    loaders named ``id/<task>`` and ``ood/<name>``. Entry i of what it returns holds loader i's figures under the
    loader's name, and ``id/avg``, ``ood/avg`` and, where expert accuracies are given, ``id/normalized``. ``test``
    and ``predict`` work likewise; ``predict`` returns logits.

    The task weights are held outside parameters and buffers: they are not moved to the device as a whole and not in
    ``state_dict()``, which is the merged model and its heads.

    Args:
        model: The architecture of the checkpoints. The module's own weights are overwritten. Or a function that makes
            it of the strategy's device mesh, such as ``ModelParallelStrategy`` has, and may shard it there and leave
            it on the meta device. The function is called once without a mesh, on the meta device, for the model's
            layers and shapes.
        vectors: The task vectors.
        recipe: Rule, scale and pruning.
        heads: Set name (the part of a loader's name after ``id/`` or ``ood/``) to a head that maps what ``model``
            returns to that set's logits. Without heads the model's own output is the logits. Where the task vectors
            leave out the tasks' classifiers because their shapes differ, these are the heads by default, on the
            model's features.
        statistics: What was collected on data for rules that need it; see
            `lwptv_lightning.callbacks.CollectStatistics`.
        metric: A torchmetrics metric or collection of logits and targets; top-1 accuracy by default.
        expert_accuracy: Set name to the accuracy of its expert, for the normalised accuracy.

    Raises:
        ValueError: Model and task vectors do not fit.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> vectors = TaskVectors.open(model, {"a": {"weight": torch.eye(2), "bias": torch.zeros(2)}})
        >>> module = MergeModule(model, vectors, MergeRecipe(scale=1.0)).merge_()
        >>> module(torch.tensor([[3.0, 4.0]])).round(decimals=3).tolist()
        [[3.0, 4.0]]
    """

    vectors: TaskVectors
    recipe: MergeRecipe
    installed: MergeRecipe | None
    """The recipe whose result `model` holds."""
    plan: PruningPlan | None
    """What that recipe pruned."""

    def __init__(
        self,
        model: nn.Module | Callable[[DeviceMesh | None], nn.Module],
        vectors: TaskVectors,
        recipe: MergeRecipe | None = None,
        *,
        heads: Mapping[str, nn.Module] | None = None,
        statistics: DataStatistics | None = None,
        metric: Metric | MetricCollection | None = None,
        expert_accuracy: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.recipe = MergeRecipe() if recipe is None else recipe
        self._build = None if isinstance(model, nn.Module) else model
        if not isinstance(model, nn.Module):
            with torch.device("meta"):
                model = model(None)
        _check_fit(model, vectors)
        self.model = model
        self.vectors = vectors
        self.statistics = statistics
        self.installed = None
        self.plan = None
        heads = _classifier_heads(model, vectors) | dict(heads or {})
        self.heads = nn.ModuleDict({_key(name): head for name, head in heads.items()})
        self.metrics = LoaderMetrics((), metric)
        self.expert_accuracy = dict(expert_accuracy or {})
        self._metric = metric
        self._loaders: dict[str, Any] = {}
        self._layers: dict[str, Layers] = {}
        self._first_batches: dict[str, float] = {}
        self.save_hyperparameters({"recipe": self.recipe.to_dict(), "tasks": list(vectors.tasks)})

    def setup(self, stage: str) -> None:
        """Find the layers while the model can be traced; `configure_model` may shard it."""
        if self.recipe.needs_layers:
            self.layers()

    def configure_model(self) -> None:
        """Build the model, where a function was given for it, under the device mesh of the trainer's strategy."""
        if self._build is not None:
            self.model = self._build(self.device_mesh)
            self._build = None
            materialize_(self.model, self.device if self._trainer is None else self.trainer.strategy.root_device)

    def layers(self, granularity: str | None = None) -> Layers:
        """Return the model's layers in execution order, by default at the recipe's granularity."""
        granularity = granularity or self.recipe.granularity
        if granularity not in self._layers:
            self._layers[granularity] = trace_layers(self.model, granularity)
        return self._layers[granularity]

    def merge_(
        self,
        device: torch.device | str | None = None,
        *,
        vectors: TaskVectors | None = None,
        recipe: MergeRecipe | None = None,
        ranks: Ranks = ALONE,
    ) -> MergeModule:
        """Merge, install the result into `model` and return the module.

        Args:
            device: Where to merge; by default where the module is.
            vectors: Other task vectors than the module's.
            recipe: Another recipe than the module's.
            ranks: The processes that divide the work among them, which must all make this call.
        """
        self.configure_model()
        device = self.device if device is None else device
        vectors, recipe = vectors or self.vectors, recipe or self.recipe
        layers = self.layers(recipe.granularity) if recipe.needs_layers else None
        self.plan = plan_pruning(vectors, recipe, layers, device, ranks=ranks) if recipe.prunes_layers else None
        mask = self.plan.mask if self.plan else None
        shapes = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        # The model is the base where nothing is merged; a classifier of another shape than the base's is its own.
        fitting = [name for name, header in vectors.headers.items() if shapes.get(name) == header.shape]
        merge_into_(
            self.model,
            vectors,
            recipe,
            layers,
            device,
            names=(*vectors.shared_names, *fitting),
            mask=mask,
            statistics=self.statistics,
            ranks=ranks,
        )
        self.installed = recipe
        return self

    def save_merged(self, path: str | Path) -> Path:
        """Merge and write the merged model (without heads) to a ``.safetensors`` file.

        With a sharded model every process must call it.

        Returns:
            The path.
        """
        require_safetensors_path(path)
        self.merge_()
        return write_safetensors(whole_state(self.model), path, metadata_of(self.vectors, self.recipe))

    def forward(self, inputs: Tensor, head: str | None = None) -> Tensor:
        """Return logits, or what the model returns.

        Args:
            inputs: What the model takes, such as images ``(B, C, H, W)``.
            head: Name of the head to apply; none by default.

        Returns:
            ``(B, classes)`` with a head, else the model's own output.

        Raises:
            UnknownNameError: No such head.
        """
        if head is None:
            output: Tensor = self.model(inputs)
            return output
        model: Any = self.model
        classify = self.head(head)
        if self.vectors.classifiers:
            features = model.forward_head(model.forward_features(inputs), pre_logits=True)
        else:
            features = model(inputs)
        logits: Tensor = classify(features)
        return logits

    def head(self, name: str) -> nn.Module:
        """Return a head.

        Raises:
            UnknownNameError: No such head.
        """
        if _key(name) not in self.heads:
            raise UnknownNameError("head", name, self.head_names)
        return self.heads[_key(name)]

    @property
    def head_names(self) -> tuple[str, ...]:
        """The names of the heads."""
        return tuple(name.replace(_DOT, ".") for name in self.heads)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of the trainer's, whose weights the merged ones would overwrite.

        Raises:
            ValueError: The trainer was given ``ckpt_path``.
        """
        # The trainer knows of the path only from here on; in `setup` it is None still.
        ckpt_path = None if self._trainer is None else self._trainer.ckpt_path
        if ckpt_path is not None:
            raise ValueError(
                f"ckpt_path={str(ckpt_path)!r} cannot be used with a MergeModule, whose weights come from its task "
                "vectors; leave it out."
            )

    def teardown(self, stage: str) -> None:
        """Refuse loaders without a single batch, on which Lightning skips the run and returns nothing.

        Raises:
            ValueError: As in `prepare`.
        """
        loaders = {"validate": self.trainer.val_dataloaders, "test": self.trainer.test_dataloaders}.get(stage)
        if loaders is not None:
            require_loaders(loaders)

    def prepare(self, loaders: object) -> None:
        """Check the loaders against the heads and make a metric for each, before anything is merged.

        Args:
            loaders: Name to loader, as the trainer holds them.

        Raises:
            ValueError: A loader is not named ``id/...`` or ``ood/...``, is empty or drops samples.
            UnknownNameError: A loader has no head, where there are heads.
        """
        self._loaders = require_loaders(loaders)
        self._first_batches = {}
        for loader in self._loaders:
            name = split_name(loader)[1]
            if self.heads and _key(name) not in self.heads:
                raise UnknownNameError(f"head for loader {loader!r}:", name, self.head_names)
        self.metrics = LoaderMetrics(tuple(self._loaders), self._metric).to(self.device)
        self._forget_earlier_runs()

    def _forget_earlier_runs(self) -> None:
        # A trainer remembers as which loader's a name was logged, and fails when it is another one's in a later run.
        logged: Any = {} if self._trainer is None else self._trainer._results or {}
        for key in [key for key in logged if key.startswith(("validation_step.", "test_step."))]:
            del logged[key]

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a batch; override it for batches that are no ``(inputs, targets)``."""
        if isinstance(batch, list | tuple) and len(batch) >= 2:
            return batch[0], batch[1]
        raise TypeError(
            f"a batch must be (inputs, targets), not {type(batch).__name__}; override MergeModule.unpack for others."
        )

    def head_of(self, loader: str) -> str | None:
        """Return the name of the head for a loader; ``None`` where the model itself gives the logits."""
        return split_name(loader)[1] if self.heads else None

    def count(self, loader: str, batch: Any, batch_idx: int) -> int:
        """Update a loader's metric with the samples of a batch that count.

        Args:
            loader: A name among the prepared loaders.
            batch: The batch, on the module's device.
            batch_idx: The batch's number on this process.

        Returns:
            How many samples count.
        """
        inputs, targets = self.unpack(batch)
        logits = self(inputs, self.head_of(loader))
        if batch_idx == 0 and is_iterable(self._loaders[loader]):
            self._first_batches[loader] = float(logits.double().sum())
        counted = len(sample_positions(self._loaders[loader], batch_idx, len(targets)))
        if counted:
            self.metrics[loader].update(logits[:counted], targets[:counted])
        return counted

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update the loader's metric with the samples that count."""
        loader = tuple(self._loaders)[dataloader_idx]
        counted = self.count(loader, batch, batch_idx)
        for name, metric in self.metrics.logged(loader).items():
            self.log(
                name,
                metric,
                on_step=False,
                on_epoch=True,
                add_dataloader_idx=False,
                batch_size=max(counted, 1),
                metric_attribute=f"metrics.{name}",  # Lightning remembers the metrics of an earlier run otherwise
            )

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Do what `validation_step` does."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the logits of a batch, which may be inputs alone."""
        inputs = batch if isinstance(batch, Tensor) else self.unpack(batch)[0]
        logits: Tensor = self(inputs, self.head_of(tuple(self._loaders)[dataloader_idx]) if self.heads else None)
        return logits

    def on_validation_epoch_end(self) -> None:
        """Log the averages over the loaders."""
        if any(map(is_iterable, self._loaders.values())):
            for loader in repeated_loaders(ranks_of(self.trainer).exchange(self._first_batches)):
                rank_zero_warn(
                    f"loader {loader!r} gives several processes the same samples, which are counted several times. "
                    "Let the iterable data set yield each process's own share, or pass one with a length."
                )
        # The figures are reduced over the processes already.
        self.log_dict(averages(self.metrics.compute(), self.expert_accuracy), rank_zero_only=False)

    def on_test_epoch_end(self) -> None:
        """Log the averages over the loaders."""
        self.on_validation_epoch_end()

    def configure_callbacks(self) -> list[Callback]:
        """Bring the callback that merges, unless the trainer has one."""
        from lwptv_lightning.callbacks.prune_and_merge import MergeOwnModule, PruneAndMerge

        has_one = any(isinstance(callback, PruneAndMerge) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if has_one else [MergeOwnModule()]


def ranks_of(trainer: Trainer) -> Ranks:
    """Return a trainer's processes; a trainer of one device works alone, whatever process group there is."""
    return Ranks.current() if trainer.world_size > 1 else ALONE


_DOT = "%2E"


def _key(name: str) -> str:
    """Return a name under which a ModuleDict can hold a head: attributes may not contain dots."""
    return name.replace(".", _DOT)


def _check_fit(model: nn.Module, vectors: TaskVectors) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    label = type(model).__name__
    absent = [name for name in vectors.shared_names if name not in own]
    if absent:
        raise ValueError(
            f"{label} has no tensor {some_of(absent)}{nearest(absent[0], own)} Expected the architecture that the "
            "checkpoints are of; tensors that are not to be merged go into exclude=(...)."
        )
    for name in vectors.shared_names:
        if own[name] != vectors.headers[name].shape:
            raise ValueError(f"{label}: {name!r} has shape {own[name]}, the base {vectors.headers[name].shape}.")
    classifiers = tuple(f"{path}." for path in vectors.classifiers)
    unset = [name for name in own if name not in vectors.headers and not (classifiers and name.startswith(classifiers))]
    if unset:
        raise ValueError(
            f"{label} has tensors that the base has not and that would stay random: {some_of(unset)} Build it without "
            "them (timm: num_classes=0), or add them to the base checkpoint."
        )


def _classifier_heads(model: nn.Module, vectors: TaskVectors) -> dict[str, nn.Module]:
    """Make a head of each task's own classifier, where the task vectors leave these out."""
    heads: dict[str, nn.Module] = {}
    for task in vectors.tasks if vectors.classifiers else ():
        if len(vectors.classifiers) > 1:
            raise ValueError(f"{type(model).__name__} has several classifiers; give heads={{task: module}}.")
        path = vectors.classifiers[0]
        state = {name.removeprefix(f"{path}."): tensor for name, tensor in vectors.classifier_state(task).items()}
        pattern = model.get_submodule(path)
        if not isinstance(pattern, nn.Linear) or "weight" not in state:
            raise ValueError(f"the classifier {path!r} of {task!r} is no linear layer; give heads={{task: module}}.")
        classes, features = state["weight"].shape
        head = nn.Linear(features, classes, bias="bias" in state)
        head.load_state_dict(state)
        heads[task] = head
    return heads

"""`MergeModule`: a LightningModule that is the merged model, validated over ID and OOD loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lwptv_lightning.checkpoints import Provenance
from lwptv_lightning.engine import Memo
from lwptv_lightning.evaluation.averages import accuracies
from lwptv_lightning.evaluation.contents import Contents
from lwptv_lightning.evaluation.given_heads import HeadsGiven
from lwptv_lightning.evaluation.heads import Heads, require_same_classifiers
from lwptv_lightning.evaluation.heads_file import write_heads
from lwptv_lightning.evaluation.interface import Interface, require_one_tensor
from lwptv_lightning.evaluation.lightning import callbacks_of, share_evaluation_, trainer_of
from lwptv_lightning.evaluation.measured import Measured
from lwptv_lightning.evaluation.merging import merge_model_, require_fit
from lwptv_lightning.evaluation.metric_choice import MetricChoice, Metrics
from lwptv_lightning.evaluation.metrics import LoaderMetrics
from lwptv_lightning.evaluation.remembering import with_memo
from lwptv_lightning.evaluation.saving import save_module
from lwptv_lightning.evaluation.steps import EvaluationSteps
from lwptv_lightning.evaluation.stored import restore_, store
from lwptv_lightning.functional import keep_plain_names_
from lwptv_lightning.layers import Layers, trace_layers
from lwptv_lightning.merging import (
    MergeOptions,
    PruningPlan,
    Undo,
    base_classifier,
    materialize_,
    provenance_of,
    require_options,
)
from lwptv_lightning.recipe import MergeRecipe, make_recipe
from lwptv_lightning.registry import GRANULARITIES, require_kind, require_known, require_texts
from lwptv_lightning.rules import DataStatistics
from lwptv_lightning.saliency import LayerStatistics
from lwptv_lightning.task_vectors import TaskVectors


class MergeModule(EvaluationSteps):
    """The model that a recipe makes of a base and its task vectors.

    ``trainer.validate(module, loaders)`` merges on the trainer's device, installs the result and validates it over
    loaders named ``id/<task>`` and ``ood/<name>``, or with a group of your own in between, ``ood/<group>/<name>``.
    Entry i of what it returns holds loader i's figures under the loader's name, and ``id/avg``, ``ood/avg``, each
    group's ``ood/<group>/avg`` and, where expert accuracies are given, ``id/normalized``. ``test`` and ``predict`` work
    likewise; ``predict`` returns logits.

    The task weights are held outside parameters and buffers: they are not moved to the device as a whole and not in
    ``state_dict()``, which is the merged model and its heads. Of a checkpoint by ``trainer.save_checkpoint`` these are
    made again without task vectors: ``MergeModule.load_from_checkpoint(path, model=..., heads=...)``, where heads that
    are the tasks' own classifiers need not be given. What was loaded is evaluated and saved as it is.

    Args:
        model: The architecture of the checkpoints, whose own weights are overwritten. Or a function that makes it of
            the strategy's device mesh, such as ``ModelParallelStrategy`` has, where it may shard it and leave it on
            the meta device; for layers and shapes it is called once on the meta device, without a mesh.
        vectors: The task vectors. A module that was loaded from a checkpoint needs them only to merge anew.
        recipe: Rule, scale and pruning; also a rule's name or a recipe's fields.
        heads: Set name (what follows ``id/`` or ``ood/``, with a group or without it, the longer first) to a head that
            makes that set's logits, which are the model's own output where there are no heads: a module, which maps
            what ``model`` returns; a checkpoint of the architecture, whose classifier it is (see `heads_from`); or the
            name of another set, whose head it is: a file that is named as a set is ``"./<file>"``. Or the file of heads
            that `save_merged` wrote. Where task vectors leave out the tasks' classifiers because their shapes differ,
            these are the heads by default, and modules act where they do: in the place of the model's own classifier.
        metric: A torchmetrics metric or collection of logits and targets; top-1 accuracy by default. A result of many
            parts is logged part by part, as ``id/<task>/<part>`` and ``id/avg/<part>``. Or a metric for each loader, by
            its name or its set's: ``{"id/svhn": ..., "mnist": ...}``; or a function that makes it of the loader's head,
            or of the model where there are no heads. Figures of different kinds have no average.
        expert_accuracy: Set name to the accuracy of its expert, for the normalised accuracy.
        tasks: The tasks' names; by default those of the task vectors.
        batch_keys: Where a batch has inputs and targets, such as ``("pixel_values", "labels")``, or
            ``(("input_ids", "attention_mask"), "labels")``, which go to the model by name. See also ``unpack``.
        output_key: The key or place of the logits, or of the features for heads, in what the model returns.
        options: Those of `lwptv_lightning.merge`, such as ``statistics``, what
            `lwptv_lightning.callbacks.CollectDataStatistics` collected for rules that need it.

    Raises:
        ValueError: Model and task vectors do not fit.
        TypeError: Merging has no such option.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> vectors = TaskVectors.open(model, {"a": {"weight": torch.eye(2), "bias": torch.zeros(2)}})
        >>> module = MergeModule(model, vectors, {"rule": "task_arithmetic", "scale": 1.0}).merge_()
        >>> module(torch.tensor([[3.0, 4.0]])).round(decimals=3).tolist()
        [[3.0, 4.0]]
    """

    recipe: MergeRecipe
    installed: MergeRecipe | None
    """The recipe whose result `model` holds."""
    plan: PruningPlan | None
    """What that recipe pruned."""
    treatment: str | None
    """How many tensors its rule did its own with, in words; see `lwptv_lightning.merging.MergePlan`."""
    provenance: Callable[[], Provenance]
    """Tells what a file of the merge says of itself."""
    contents: Contents
    """What the merge put into the model."""
    measured: Measured | None = None
    """What its last whole evaluation found."""
    memo: Memo | None = None
    """Remembers the decompositions of its task vectors, from the second merge on, and for what merges them often."""

    def __init__(
        self,
        model: nn.Module | Callable[[DeviceMesh | None], nn.Module],
        vectors: TaskVectors | None = None,
        recipe: MergeRecipe | str | Mapping[str, Any] | None = None,
        *,
        heads: HeadsGiven | None = None,
        metric: Metrics | None = None,
        expert_accuracy: Mapping[str, float] | None = None,
        tasks: Sequence[str] = (),
        batch_keys: Sequence[Any] | None = None,
        output_key: str | int | None = None,
        **options: Unpack[MergeOptions],
    ) -> None:
        super().__init__()
        require_options(MergeModule, options)
        require_kind("model", model, nn.Module | Callable, "a module, or a function that makes one")
        self.recipe = make_recipe({} if recipe is None else recipe, options)
        self._build = None if isinstance(model, nn.Module) else model
        if not isinstance(model, nn.Module):
            with torch.device("meta"):
                model = model(None)
        if vectors is not None:
            require_fit(model, vectors)
        self.model = model
        keep_plain_names_(self)
        self.options = {name: value for name, value in options.items() if name not in ("dtype", "task")}
        self.tasks = require_texts("tasks", tasks, "the tasks' names") if vectors is None else vectors.tasks
        self.installed = self.plan = self.treatment = None
        self.heads = Heads.of(model, vectors, {} if heads is None else heads)
        self.interface = Interface(batch_keys, output_key)  # type: ignore[arg-type]
        self.metric_choice = MetricChoice(metric)
        self.metrics = LoaderMetrics(())
        self.expert_accuracy = accuracies(expert_accuracy)
        self._layers: dict[str, Layers] = {}
        self._vectors = None if vectors is None else vectors.knowing(model)
        self._heads_of = self._vectors
        self.provenance = Provenance
        self.contents = Contents()
        named = {"recipe": self.recipe.to_dict(), "tasks": list(self.tasks)}
        self.save_hyperparameters(named | self.interface.to_dict())

    @property
    def held_vectors(self) -> TaskVectors | None:
        """The task vectors; ``None`` where there are none."""
        return self._vectors

    @property
    def vectors(self) -> TaskVectors:
        """The task vectors; a `ValueError` where there are none, as after `load_from_checkpoint`."""
        if self._vectors is None:
            raise ValueError("this MergeModule holds what was loaded and no task vectors; give vectors=... to merge.")
        return self._vectors

    @vectors.setter
    def vectors(self, vectors: TaskVectors) -> None:
        require_kind("vectors", vectors, TaskVectors, "TaskVectors")
        self._vectors = vectors.knowing(self.model)

    @property
    def statistics(self) -> DataStatistics | None:
        """What was collected on data for rules that need it."""
        found: Any = self.options.get("data", self.options.get("statistics"))
        return None if isinstance(found, LayerStatistics) else found

    @statistics.setter
    def statistics(self, statistics: DataStatistics | None) -> None:
        self.options["data"] = statistics

    def setup(self, stage: str) -> None:
        """Check and divide the loaders, and find the layers before `configure_model` may shard the model."""
        if (trainer := trainer_of(self)) is not None:
            share_evaluation_(trainer, stage)
        if self._vectors is not None and (self.recipe.needs_layers or "mask" in self.options):
            self.layers()

    def configure_model(self) -> None:
        """Build the model, where a function was given for it, under the device mesh of the trainer's strategy."""
        if self._build is not None:
            model, trainer = self._build(self.device_mesh), trainer_of(self)
            materialize_(model, self.device if trainer is None else trainer.strategy.root_device)
            self.model = model
            self._build = None  # last: whatever was raised before, the model is made anew

    def layers(self, granularity: str | None = None) -> Layers:
        """Return the model's layers in execution order, by default at the recipe's granularity."""
        granularity = self.recipe.granularity if granularity is None else granularity
        require_known("granularity", granularity, GRANULARITIES)
        if granularity not in self._layers:
            self._layers[granularity] = trace_layers(self.model, granularity)
        return self._layers[granularity]

    def merge_(
        self,
        device: torch.device | str | None = None,
        *,
        vectors: TaskVectors | None = None,
        recipe: MergeRecipe | str | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> MergeModule:
        """Merge, install the result into `model` and return the module.

        Whatever is raised meanwhile, the model and what tells of its merge are all as they were, or all new.

        Args:
            device: Where to merge; by default where the module is.
            vectors: Other task vectors than the module's.
            recipe: Another recipe than the module's.
            options: As for the module, whose own they go before.

        Raises:
            ValueError: There are no task vectors, and something else is asked for than what was loaded.
        """
        self.configure_model()
        recipe = make_recipe(self.recipe if recipe is None else recipe, options)
        options = {**self.options, **options, "device": self.device if device is None else device}
        if vectors is self._vectors is None and recipe == self.installed and options.keys() <= {"device", "ranks"}:
            return self  # what was loaded is this merge
        if self.installed is not None and self.memo is None:
            self.memo = Memo()
        vectors, options = self.vectors if vectors is None else vectors, with_memo(options, self.memo)
        require_fit(self.model, vectors)
        require_same_classifiers(self._heads_of or vectors, vectors, self.heads.own_tasks)
        with Undo() as undo:
            plan = merge_model_(self.model, vectors, recipe, self.layers, options, undo, whole=True)
            undo.remember(self, "plan", "treatment", "installed", "provenance", "contents")
            self.plan, self.treatment, self.installed = plan.pruning, plan.treatment, plan.recipe
            self.provenance = partial(provenance_of, plan.vectors, plan.recipe, plan.mask, plan.layers, plan.data)
            self.contents = Contents.of(self.model, vectors.headers, vectors.tasks, base_classifier(vectors))
            undo.keep()
        return self

    def save_merged(
        self,
        path: str | Path,
        *,
        heads: bool = False,
        format: str | None = None,
        max_shard_size: int | str | None = None,
        overwrite: bool = True,
        keep_classifier: bool = False,
    ) -> Path:
        """Write the model as it is, merged, to a file or a folder, in the dtypes of the base.

        What was validated is what is written; a model that holds no merge yet is merged first. Where a tensor is not as
        the merge left it, the file's metadata say so. All processes call it, where it is sharded; the first one writes
        a folder.

        Args:
            path: A ``.safetensors`` file, or a folder, which `model`'s own library loads where it is of timm or
                transformers; see `lwptv_lightning.save_merged`, also for the rest.
            heads: Whether to write the heads too: beside a file as ``<stem>.heads.safetensors``, in a folder as
                ``heads.safetensors``. Their tensors are named ``<set>/<name in the model>``: a plain model of a set's
                classes takes those of the merged file and of one set. ``heads=<this file>`` of a `MergeModule` reads
                them again.
            format: The kind of folder.
            max_shard_size: Of a file or a folder in shards. Without it, a file is not divided.
            overwrite: Whether to replace a model.
            keep_classifier: Whether to write the base's classifier, where the tasks have their own.

        Raises:
            ValueError: There are no heads to write; besides, as in `lwptv_lightning.save_merged`.
        """
        return save_module(
            self,
            path,
            heads=heads,
            format=format,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            keep_classifier=keep_classifier,
        )

    def write_heads(self, path: str | Path) -> Path:
        """Write the heads to a ``.safetensors`` file as `save_merged` does, and return its path."""
        places = {name: self.heads.place(name, self.model) for name in self.heads}
        return write_heads(dict(self.heads.items()), path, places)

    def forward(self, inputs: Any, head: str | None = None) -> Tensor:
        """Return a head's logits ``(B, classes)`` for inputs such as images, or by default what the model returns.

        Override it where ``batch_keys`` and ``output_key`` do not say how the model is called.

        Raises:
            UnknownNameError: No such head, or no such part of what the model returns.
            TypeError: The model returns several parts, and no ``output_key`` tells the one.
            ValueError: No head is named where the model has no classifier of the checkpoints.
        """
        output: Tensor = self.heads.logits(self.model, inputs, head, self.interface)
        return output if self.takes_any_output else require_one_tensor(output, self.model)

    def head(self, name: str) -> nn.Module:  # noqa: D102 (as `Heads` does)
        return self.heads[name]

    @property
    def head_names(self) -> tuple[str, ...]:
        """The names of the heads."""
        return self.heads.keys()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add which merge the weights are of, and which heads belong to them."""
        store(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make way for the weights of `load_from_checkpoint`; the trainer's ``ckpt_path`` is refused."""
        restore_(self, checkpoint)

    def configure_callbacks(self) -> list[Callback]:
        """Bring the callback that merges, unless one of the trainer's says of itself that it ``installs_weights``."""
        from lwptv_lightning.evaluation.merging_callback import MergingCallback

        has_one = any(getattr(callback, "installs_weights", False) for callback in callbacks_of(self.trainer))
        return [] if has_one else [MergingCallback()]

"""`LayerGates`: learn how much of each layer of each task a merge takes, on unlabelled data, in ``trainer.fit``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from glob import escape
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lwptv_lightning.evaluation import (
    MergeModule,
    fit_loaders,
    fit_on_,
    replicas_of,
)
from lwptv_lightning.functional import device_of, plain_state, require_usable
from lwptv_lightning.learning.parts import HeldParts, options_of_parts
from lwptv_lightning.learning.samples import Steps, read_samples, require_own_loaders, require_whole_models
from lwptv_lightning.learning.substituted import Substituted, evaluating
from lwptv_lightning.learning.teachers import Lesson, teach
from lwptv_lightning.merging import installable, merge, rule_of
from lwptv_lightning.recipe import MODIFIERS, MergeRecipe
from lwptv_lightning.registry import require_finite, require_kind, require_known, require_whole
from lwptv_lightning.rules import MergeRule
from lwptv_lightning.saliency import LayerTable, merged_layers

START_OF_MATRICES = 0.4
START_OF_ROWS = 0.25


class LayerGates(LightningModule):
    """Learns a coefficient for each task and layer of what a rule makes of each task, without labels.

    Train it with ``trainer.fit(gates, {"id/svhn": loader, ...})``, one loader a task, whose labels are not looked at.
    The first ``images`` samples of each are read once, when the fit starts. A step draws ``batch_size`` of each task,
    and lowers the mean over the tasks of the cross entropy to the expert's own predictions, plus ``anchor`` times one
    minus the cosine to the base's features. Coefficients that end at zero are pruned. Then `recipe` is a `MergeRecipe`
    with the coefficients, and `scores` a table for the mask of any rule. An epoch is a pass over the samples that were
    read; ``Trainer(max_steps=90)`` is what was measured.

    Args:
        module: Model, task vectors and heads; its weights stay what they are.
        rule: A rule that is a sum over tasks, by name, as a mapping or as a `MergeRule`.
        images: How many samples of each task to learn on; of a loader with fewer, all.
        batch_size: How many samples of each task to draw for a step, over all processes.
        anchor: The weight of the base's features.
        start: Where the coefficients start, as a fraction of ``k``, the norm of the summed task vectors over that of
            the rule's summed parts; by default 0.4 for rules that treat matrices, and 0.25 for others.
        lr: Adam's learning rate as a fraction of the start; it falls to zero.
        most: The largest coefficient, as a fraction of ``k``.
        seed: Of what is drawn.
        modifiers: What stands beside the rule, as fields of a recipe: ``{"calibrate": "svc"}``.
        parts_on: Where the parts are held, such as ``"cpu"``, from which they are then taken tensor by tensor; by
            default where the model runs.

    Attributes:
        coefficients: ``(T, L)`` float32, whatever the precision; zeros before the fit starts.
        layers: The L layers, which are modules.

    Raises:
        ValueError: The rule is no sum over tasks, or a number is out of its range.
        UnknownNameError: No such rule.

    Example:
        >>> from lwptv_lightning import TaskVectors
        >>> model = nn.Linear(2, 2)
        >>> vectors = TaskVectors.open(model, {"a": {"weight": torch.eye(2), "bias": torch.zeros(2)}})
        >>> gates = LayerGates(MergeModule(model, vectors), rule="task_arithmetic")
        >>> gates.coefficients.shape, gates.layers.names
        (torch.Size([1, 2]), ('weight', 'bias'))

    Reference:
        The library's own. AdaMerging (arXiv 2310.02575) learns coefficients of the task vectors by the predictions'
        entropy; here experts teach, the base's features hold on to what it knew, and the rule's parts are weighted.
    """

    def __init__(
        self,
        module: MergeModule,
        rule: MergeRule[Any] | str | Mapping[str, Any] = "tsv_m",
        *,
        images: int = 64,
        batch_size: int = 24,
        anchor: float = 0.5,
        start: float | None = None,
        lr: float = 0.08,
        most: float = 1.5,
        seed: int = 0,
        modifiers: Mapping[str, Any] | None = None,
        parts_on: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        require_kind("module", module, MergeModule, "a MergeModule")
        require_kind("modifiers", modifiers, Mapping | None, "a mapping of a recipe's fields")
        for name in modifiers or {}:
            require_known("modifier", name, MODIFIERS)
        self._recipe = MergeRecipe(rule, 1.0, prune_on="parts", dtype=module.recipe.dtype, **(modifiers or {}))
        # In a list, so that the model's own weights are no parameters of this module.
        self._held = [module]
        self.layers = merged_layers(module.vectors, module.layers("module"))
        self.images = require_whole("images", images, 1)
        self.batch_size = require_whole("batch_size", batch_size, 1)
        self.anchor = _at_least_zero("anchor", anchor)
        usual = START_OF_MATRICES if rule_of(self._recipe).works_on_matrices() else START_OF_ROWS
        self.start = _above_zero("start", usual if start is None else start)
        self.lr, self.most = _above_zero("lr", lr), _above_zero("most", most)
        if self.most < self.start:
            raise ValueError(f"most must be at least the start {self.start:g}, not {most:g}.")
        self.seed = require_whole("seed", seed)
        self.parts_on = None if parts_on is None else device_of("parts_on", parts_on)
        self.coefficients = nn.Parameter(torch.zeros(len(module.vectors), len(self.layers), dtype=torch.float32))
        self._begun_at: float | None = None
        self._drawn = 0
        self._steps: float = math.inf
        self._came_from = module.device
        self._parts: list[HeldParts] = []
        self._lessons: list[Lesson] = []
        given = {"rule": self._recipe.rule.to_dict(), "images": self.images, "batch_size": self.batch_size}
        given |= {name: getattr(self, name) for name in ("anchor", "start", "lr", "most", "seed")}
        if beside := self._beside():
            given["modifiers"] = beside
        self.save_hyperparameters(given)

    def _beside(self) -> dict[str, Any]:
        """Return what stands beside the rule, as plain values."""
        plain = self._recipe.to_dict()
        return {name: plain[name] for name in MODIFIERS if plain[name] is not None}

    @property
    def merge_module(self) -> MergeModule:
        """What is merged."""
        return self._held[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Convert all but the coefficients to another precision, in which their steps would be lost."""
        exact = self.coefficients.detach()
        applied = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.coefficients.dtype != exact.dtype:
            self.coefficients.data = exact.to(self.coefficients.device)
        return applied

    def on_fit_start(self) -> None:
        """Read the samples, have the experts and the base teach on them, and make the rule's parts."""
        trainer, module = self.trainer, self.merge_module
        require_whole_models(trainer)
        loaders = require_own_loaders(module, fit_loaders(trainer))
        if self.parts_on is not None:
            require_usable("parts_on", self.parts_on)
        inputs = read_samples(trainer, module, loaders, self.images, self.seed)
        runs_as_steps = trainer.precision_plugin.train_step_context()
        with replicas_of(trainer).ranks.sharing_errors():
            module.configure_model()
            self._came_from = module.device
            module.to(self.device)
            parts = HeldParts.of(module, self._recipe, self.layers, self.coefficients, self.parts_on)
            self._start_at(parts.ratio)
            with evaluating(module), runs_as_steps:
                self._lessons = teach(Substituted(module, self.dtype), parts.base, inputs, self.batch_size)
        self._parts = [parts]
        fit_on_(trainer, Steps(math.ceil(max(map(len, self._lessons)) / self.batch_size)))

    def _start_at(self, ratio: float) -> None:
        """Give the coefficients their start, unless they were learnt before."""
        start = self.start * ratio
        if self._begun_at is None:
            self._begun_at = start
            self.coefficients.data.fill_(start)
        elif not math.isclose(self._begun_at, start, rel_tol=1e-3):
            raise ValueError(
                f"the coefficients started at {self._begun_at:g}, and with these task vectors, rule and start they "
                f"would at {start:g}: they were learnt on others."
            )

    def on_train_start(self) -> None:
        """See how many steps there will be, over which the learning rate falls."""
        self._steps = self.trainer.estimated_stepping_batches

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of samples of each task, through which their gradient reaches the coefficients."""
        gradient, loss = _eagerly(self._learn)
        self._drawn += 1
        self.log("loss", loss, prog_bar=True, batch_size=self.batch_size)
        reached = (self.coefficients * gradient).sum()
        return loss + reached - reached.detach()  # type: ignore[no-any-return]

    def _learn(self) -> tuple[Tensor, Tensor]:
        """Return the gradient of the coefficients and the loss, both of all processes; tasks run one by one."""
        (parts,), module, replicas = self._parts, self.merge_module, replicas_of(self.trainer)
        model = parts.model(self.coefficients.detach())
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        total, student = self.coefficients.new_zeros(1), Substituted(module, self.dtype)
        with evaluating(module):
            for lesson, drawn in zip(self._lessons, self._draws(), strict=True):
                if not len(own := drawn[replicas.rank :: replicas.size]):
                    continue
                losses = lesson.losses(student, model, own.to(self.device), self.anchor)
                loss = losses.sum() / (len(drawn) * len(self._lessons))
                with torch.autocast(self.device.type, enabled=False):
                    (loss if scaler is None else scaler.scale(loss)).backward()
                total += loss.detach()
        with torch.autocast(self.device.type, enabled=False):
            gradient = parts.gradient(model, self.coefficients)
        gradient = gradient if scaler is None else gradient / scaler.get_scale()
        found = torch.cat([gradient.flatten(), total])
        found = self.trainer.strategy.reduce(found, reduce_op="sum")
        if scaler is None and not found.isfinite().all():  # a scaler passes over such a step, and scales less then
            raise ValueError(
                f"step {self._drawn}: loss or gradient is not finite; learn in another precision than "
                f"{self.trainer.precision!r}, or see whether the samples are finite."
            )
        return found[:-1].reshape(gradient.shape), found[-1]

    def _draws(self) -> Iterator[Tensor]:
        """Yield the positions of a step's samples of each task, the same on every process."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self._drawn) % 2**63)
        for lesson in self._lessons:
            yield torch.randperm(len(lesson), generator=generator)[: self.batch_size]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over the coefficients, whose learning rate each step sets."""
        return torch.optim.Adam([self.coefficients], lr=self.lr)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Make a step at its learning rate, and keep the coefficients within their range."""
        if self._begun_at is None:
            raise ValueError("LayerGates learns in trainer.fit alone, which starts it.")
        done = min(1.0, self.trainer.global_step / self._steps)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * self._begun_at * (1 + math.cos(math.pi * done)) / 2
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        with torch.no_grad():
            self.coefficients.clamp_(0, self.most * self._begun_at / self.start)

    def on_fit_end(self) -> None:
        """Let go of parts and samples, and have the merge module where it was."""
        self._parts, self._lessons = [], []
        self.merge_module.to(self._came_from)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds besides the coefficients."""
        names = {"tasks": list(self.merge_module.vectors.tasks), "layers": list(self.layers.names)}
        rule = {"rule": self._recipe.to_dict()["rule"], "modifiers": self._beside()}
        return {**names, **rule, "begun_at": self._begun_at, "drawn": self._drawn}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take what a checkpoint holds; a `ValueError` says where it is of other tasks, layers or another rule."""
        own = self.get_extra_state()
        for name in ("tasks", "layers", "rule", "modifiers"):
            if (stored := state.get(name, {})) != own[name]:
                told = f"of the {name} {stored}, and these LayerGates of {own[name]}"
                raise ValueError(f"the checkpoint is {told}.")
        self._begun_at, self._drawn = state["begun_at"], state["drawn"]

    def recipe(self) -> MergeRecipe:
        """Return a recipe with the coefficients as they are now; ``recipe().replace(scale=0.8)`` takes less of all.

        Not so with what calibrates, which acts on the scale: there, smaller coefficients take less.

        Raises:
            ValueError: Nothing was learnt yet.
        """
        self._require_begun()
        names = [escape(name) for name in self.layers.names]
        rows = zip(self.merge_module.vectors.tasks, self.coefficients.detach().cpu().tolist(), strict=True)
        return self._recipe.replace(coefficients={task: dict(zip(names, row, strict=True)) for task, row in rows})

    def scores(self) -> LayerTable:
        """Return each coefficient over its start as a saliency, higher is kept: 1 where learning changed nothing.

        ``merge(vectors, recipe, scores=table)`` prunes by it, whatever the recipe's rule.

        Raises:
            ValueError: Nothing was learnt yet.
        """
        begun_at, headers = self._require_begun(), self.merge_module.vectors.headers
        numel = [sum(headers[name].numel for name in layer.tensors) for layer in self.layers]
        values = self.coefficients.detach().cpu().double() / begun_at
        return LayerTable(self.merge_module.vectors.tasks, self.layers.names, torch.tensor(numel).double(), values)

    def merged(self) -> dict[str, Tensor]:
        """Return the merged tensors by the model's names: bit for bit what the merge of `recipe` makes on this device.

        Raises:
            ValueError: Nothing was learnt yet.
        """
        module = self.merge_module
        made = merge(module.vectors, self.recipe(), module.layers("module"), self.device, **options_of_parts(module))
        own = plain_state(module.model)
        return {name: made[name].to(own[name].dtype) for name in installable(module.model, module.vectors)}

    def _require_begun(self) -> float:
        if self._begun_at is None:
            raise ValueError("these LayerGates have learnt nothing yet: Trainer(max_steps=90).fit(gates, loaders).")
        return self._begun_at


_eagerly: Any = torch.compiler.disable(lambda learn: learn())  # type: ignore[no-untyped-call]


def _above_zero(name: str, value: Any) -> float:
    number = require_finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be above 0, not {number:g}.")
    return number


def _at_least_zero(name: str, value: Any) -> float:
    number = require_finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must be at least 0, not {number:g}.")
    return number

"""`AdaMergingModule`: learn merging coefficients on unlabelled data in an ordinary ``trainer.fit``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lwptv_lightning.engine import Execution, Stream
from lwptv_lightning.evaluation import (
    MergeModule,
    count_samples,
    inputs_of,
    naming_loader,
    require_classified,
    require_every_loader,
)
from lwptv_lightning.learning.substituted import Substituted
from lwptv_lightning.merging import installable, merge
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import (
    require_finite,
    require_kind,
    require_known,
)
from lwptv_lightning.rules import get_rule


class AdaMergingModule(LightningModule):
    """Learns the coefficients of AdaMerging by minimising the entropy of the merged model's predictions.

    Train it with ``trainer.fit(module, {"id/svhn": loader, ...})`` on unlabelled batches of each task, given as inputs,
    as ``(inputs, ...)`` or as what the merge module's ``unpack`` knows; labels are not looked at. Then
    ``module.recipe()`` is a recipe with the learnt coefficients. The only parameters are the coefficients. All task
    vectors are held on the device while training.

    Args:
        merge_module: Model, task vectors and heads.
        per: ``"tensor"``: a coefficient for each task and parameter tensor, which the paper calls layer-wise.
            ``"task"``: one for each task.
        plus_plus: AdaMerging++: trim the task vectors and drop entries against the elected sign first.
        initial: Where the coefficients start.
        lr: Adam's learning rate.
        clamp: Limit coefficients to [0, 1] in the forward pass, with no gradient outside, as the authors do.

    Raises:
        UnknownNameError: ``per`` is neither of the two.

    Example:
        >>> from lwptv_lightning import TaskVectors
        >>> model = nn.Linear(2, 2)
        >>> vectors = TaskVectors.open(model, {"a": {"weight": torch.eye(2), "bias": torch.zeros(2)}})
        >>> AdaMergingModule(MergeModule(model, vectors), per="task").coefficients
        Parameter containing:
        tensor([[0.3000]], requires_grad=True)

    Reference:
        Yang et al., AdaMerging, arXiv 2310.02575. The authors add up two batches of each task in a step:
        ``Trainer(accumulate_grad_batches=2)``.
    """

    def __init__(
        self,
        merge_module: MergeModule,
        *,
        per: str = "tensor",
        plus_plus: bool = False,
        initial: float = 0.3,
        lr: float = 1e-3,
        clamp: bool = True,
    ) -> None:
        super().__init__()
        require_kind("merge_module", merge_module, MergeModule, "a MergeModule")
        require_known("per", per, ("tensor", "task"))
        lr = require_finite("lr", lr)
        if abs(initial := require_finite("initial", initial)) > torch.finfo(torch.float32).max:
            raise ValueError(f"initial must be a number that float32 holds, not {initial}.")
        # In a list, so that the model's own weights are no parameters of this module.
        self._held = [merge_module]
        self.per = per
        self.plus_plus = plus_plus
        self.lr = lr
        self.clamp = clamp
        names = merge_module.vectors.names
        rows = len(names) if per == "tensor" else 1
        self.coefficients = nn.Parameter(
            torch.full((rows, len(merge_module.vectors.tasks)), float(initial), dtype=torch.float32)
        )
        self._row = {name: index if per == "tensor" else 0 for index, name in enumerate(names)}
        self._task_vectors: dict[str, Tensor] = {}
        self._rest: dict[str, Tensor] = {}

    @property
    def merge_module(self) -> MergeModule:
        """What is merged."""
        return self._held[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Convert all but the coefficients to half precision, in which the steps that they learn by would be lost."""
        exact = self.coefficients.detach()
        applied = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.coefficients.dtype.itemsize < exact.dtype.itemsize:
            self.coefficients.data = exact.to(self.coefficients.device)
        return applied

    def load(self) -> None:
        """Load base and task vectors onto the module's device, as is done when a fit starts."""
        module = self.merge_module.to(self.device).eval()
        module.require_logits()
        vectors = module.vectors
        rule: Any = get_rule("adamerging")(plus_plus=self.plus_plus)  # type: ignore[call-arg]
        dtype = self.coefficients.dtype  # also of a trainer in double precision
        stream = Stream.of(vectors, dtype=dtype, execution=Execution(device=self.device))
        survey = rule.survey(stream)
        task_vectors = {name: rule.split(stream.stack(name), survey) for name in vectors.names}
        rest = merge(vectors.without_weights(), "simple_average", device=self.device, dtype=dtype)
        self._task_vectors, self._rest = task_vectors, {name: rest[name] for name in installable(module.model, vectors)}

    on_fit_start = load

    def on_train_start(self) -> None:
        """Refuse loaders that are combined in a way which leaves tasks out, or that are not of classes."""
        require_every_loader(self.trainer)
        if isinstance(loaders := self.trainer.train_dataloader, Mapping):
            self.merge_module.metric_choice.require_of_classes("AdaMerging", self.merge_module.heads_for(loaders))

    def merged(self) -> dict[str, Tensor]:
        """Return the merged tensors, through which gradients reach the coefficients."""
        coefficients = self.coefficients.clamp(0, 1) if self.clamp else self.coefficients
        with torch.autocast(self.device.type, enabled=False):
            merged = {
                name: self._rest[name] + torch.tensordot(coefficients[self._row[name]], tau, dims=1)
                for name, tau in self._task_vectors.items()
            }
        tied = {name: merged[first] for name, first in self.merge_module.vectors.tied.items()}
        return self._rest | merged | tied

    def entropy(self, batches: Mapping[str, Any]) -> Tensor:
        """Return the sum over loaders of the predictions' mean entropy in nats, by name to inputs ``(B, ...)``."""
        module = self.merge_module
        substituted = Substituted(module, self.dtype)
        weights = substituted.tensors(self.merged())
        total = self.coefficients.new_zeros(())
        for loader, inputs in batches.items():
            logits = substituted.run(weights, inputs, module.head_of(loader))
            logits = require_classified(logits, module.model, dense=True)
            log_probabilities = logits.to(total.dtype).log_softmax(1)
            total = total - (log_probabilities.exp() * log_probabilities).sum(1).mean()
        return total

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the entropy of a batch of each task."""
        if not isinstance(batch, Mapping):
            given = type(batch).__name__
            raise TypeError(f"train on a dict of loaders such as {{'id/svhn': loader}}; a step got a {given}.")
        inputs = {}
        for name, part in batch.items():
            with naming_loader(name):
                inputs[name] = inputs_of(self.merge_module, part)
        loss = self.entropy(inputs)
        self.log("entropy", loss, prog_bar=True, batch_size=sum(map(count_samples, inputs.values())))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over the coefficients."""
        return torch.optim.Adam([self.coefficients], lr=self.lr)

    def recipe(self) -> MergeRecipe:
        """Return a recipe with the coefficients as they are now."""
        rows = (self.coefficients.clamp(0, 1) if self.clamp else self.coefficients).tolist()
        table = {name: rows[row] for name, row in self._row.items()} if self.per == "tensor" else {"*": rows[0]}
        return MergeRecipe({"name": "adamerging", "coefficients": table, "plus_plus": self.plus_plus})

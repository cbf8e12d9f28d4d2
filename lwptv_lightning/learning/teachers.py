"""What a merged model is to keep: each expert's predictions, and the base's features, on the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.functional import normalize

from lwptv_lightning.evaluation import MergeModule, count_samples, naming_loader, require_classified, take_samples
from lwptv_lightning.functional import plain_module, plain_name
from lwptv_lightning.learning.substituted import Substituted
from lwptv_lightning.task_vectors import output_paths


@dataclass(frozen=True)
class Lesson:
    """A task's samples and what is to be predicted of them.

    Attributes:
        loader: The task's loader.
        inputs: Those of the N samples.
        probabilities: The expert's, ``(N, C, ...)`` float32.
        features: The base's, ``(N, D)`` float32 of length 1.
    """

    loader: str
    inputs: Any
    probabilities: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def losses(self, student: Substituted, model: Mapping[str, Tensor], positions: Tensor, anchor: float) -> Tensor:
        """Return how far a model is from what is to be kept, for each of some samples, ``(B,)``.

        The cross entropy to the expert's predictions, and ``anchor`` times one minus the cosine to the base's features.
        """
        size = len(self)
        inputs = apply_to_collection(
            self.inputs, Tensor, lambda each: each[positions] if each.ndim and len(each) == size else each
        )
        logits, features = predict(student, student.tensors(model), inputs, self.loader)
        entropies = -(self.probabilities[positions] * logits.log_softmax(1)).sum(1)
        cosines = (features * self.features[positions]).sum(1)
        return entropies.reshape(len(entropies), -1).mean(1) + anchor * (1 - cosines)


@torch.no_grad()
def teach(teacher: Substituted, base: Mapping[str, Tensor], inputs: Mapping[str, Any], batch_size: int) -> list[Lesson]:
    """Run each task's expert and the base over that task's samples, one model after the other.

    Args:
        teacher: Model, task vectors and heads.
        base: The base's tensors, on the device.
        inputs: Loader of each task, in their order, to inputs.
        batch_size: How many samples to run at a time.

    Raises:
        ValueError: What an expert gives is no logits of several classes, or not finite.
    """

    def predicted(model: Mapping[str, Tensor], loader: str) -> tuple[Tensor, Tensor]:
        given, tensors = inputs[loader], teacher.tensors(model)
        starts = range(0, count_samples(given), batch_size)
        batches = (take_samples(given, start, start + batch_size) for start in starts)
        found = [predict(teacher, tensors, batch, loader) for batch in batches]
        logits, features = (torch.cat(list(each)) for each in zip(*found, strict=True))
        return logits, features

    features = {loader: predicted(base, loader)[1] for loader in inputs}
    lessons = []
    for place, loader in enumerate(inputs):
        logits, _ = predicted(dict(base) | _expert(teacher.module, place, base), loader)
        if not (logits.isfinite().all() and features[loader].isfinite().all()):
            raise ValueError(f"loader {loader!r}: what its expert or the base makes of its samples is not finite.")
        lessons.append(Lesson(loader, inputs[loader], logits.softmax(1), features[loader]))
    return lessons


def _expert(module: MergeModule, place: int, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all of a task's own tensors that the model takes, also those that are not merged."""
    vectors = module.vectors
    task, headers = vectors.tasks[place], vectors.checkpoints[1 + place].headers
    own = [name for name, tensor in base.items() if name in headers and headers[name].shape == tensor.shape]
    return {name: vectors.expert(task, name).to(base[name].device) for name in own}


def predict(substituted: Substituted, tensors: Mapping[str, Tensor], inputs: Any, loader: str) -> tuple[Tensor, Tensor]:
    """Return logits ``(B, C, ...)``, and the features ``(B, D)`` that they are made of, of length 1; both float32.

    Features are what the loader's head is given, or the model's own classifier where it is known; else the logits.
    """
    module = substituted.module
    head = module.head_of(loader)
    with naming_loader(loader), _watching(module, head) as seen:
        logits = require_classified(substituted.run(tensors, inputs, head), module.model, dense=True).float()
    features = seen[0].float() if seen and len(seen[0]) == len(logits) else logits
    return logits, normalize(features.flatten(1), dim=1)


@contextmanager
def _watching(module: MergeModule, head: str | None) -> Iterator[list[Tensor]]:
    """Give what the first part of a head, or of the model's own classifier, is called with in the ``with`` block."""
    seen: list[Tensor] = []

    def hook(part: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if not seen:
            seen.extend(each for each in (*arguments, *named.values()) if isinstance(each, Tensor) and each.ndim > 1)

    with ExitStack() as stack:
        for part in _classifying(module, head):
            stack.enter_context(part.register_forward_pre_hook(hook, with_kwargs=True))
        yield seen


def _classifying(module: MergeModule, head: str | None) -> list[nn.Module]:
    if head is not None:
        return list(module.heads[head].modules())
    model = plain_module(module.model)
    paths = output_paths(model)
    return [part for path, part in model.named_modules() if plain_name(path) in paths]

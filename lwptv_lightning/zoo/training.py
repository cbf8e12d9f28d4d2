"""One short training loop, for the base and for the experts, and the batches it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lwptv_lightning.zoo.data import Draw, draw, sample_generator
from lwptv_lightning.zoo.glyphs import ALPHABETS, PRETRAINING_FACES, faces_with, glyph_mask
from lwptv_lightning.zoo.styles import STYLES, Pixels, render

_CLASSES: Final = "".join(ALPHABETS.values())
_MILDEST_TO_STRONGEST: Final = (0.0, 0.5)  # the base meets every style, but only mildly


def draw_pretraining(index: int, *, seed: int) -> tuple[Pixels, int]:
    """Render one sample of the broad problem: any character, in any style, mildly.

    Args:
        index: Position in the endless set.
        seed: Non-negative.

    Returns:
        The image ``(32, 32)`` and its label among all classes of the zoo.

    Example:
        >>> image, label = draw_pretraining(0, seed=0)
        >>> image.shape, 0 <= label < len(_CLASSES)
        ((32, 32), True)
    """
    generator = sample_generator(seed, "pretraining", index)
    label = int(generator.integers(len(_CLASSES)))
    faces = faces_with(_CLASSES[label], PRETRAINING_FACES)
    mask = glyph_mask(_CLASSES[label], faces[generator.integers(len(faces))])
    style = STYLES[generator.integers(len(STYLES))]
    return render(mask, style, generator.uniform(*_MILDEST_TO_STRONGEST), generator), label


def draw_task(task: str, index: int, *, seed: int) -> tuple[Pixels, int]:
    """Render one training sample of a task.

    Args:
        task: A name in ``ID_SETS``.
        index: Position in the endless set.
        seed: Non-negative.

    Returns:
        The image ``(32, 32)`` and its label in the task.

    Example:
        >>> draw_task("lower_rotated", 2, seed=0)[1]
        2
    """
    return draw(task, "train", index, seed=seed)


def batches(draw_sample: Draw, batch_size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield fresh samples: none is seen twice, so there is nothing to overfit to but the domain.

    Args:
        draw_sample: Renders the sample at an index.
        batch_size: Samples per batch.
        steps: Number of batches.

    Yields:
        Images ``(B, 1, 32, 32)`` and labels ``(B,)``.

    Example:
        >>> from functools import partial
        >>> images, labels = next(batches(partial(draw_task, "lower_rotated", seed=0), batch_size=3, steps=1))
        >>> images.shape, labels.tolist()
        (torch.Size([3, 1, 32, 32]), [0, 1, 2])
    """
    for step in range(steps):
        drawn = [draw_sample(index) for index in range(step * batch_size, (step + 1) * batch_size)]
        images = torch.from_numpy(np.stack([image for image, _ in drawn]))
        yield images.unsqueeze(1), torch.tensor([label for _, label in drawn])


def fit(
    model: nn.Module,
    head: nn.Module,
    data: Iterator[tuple[Tensor, Tensor]],
    *,
    steps: int,
    learning_rate: float,
    on_step: Callable[[float], None] = lambda loss: None,
) -> list[float]:
    """Train in place with AdamW, a warm-up and a cosine decay.

    Parameters that require no gradient, such as those of a frozen head, stay as they are.

    Args:
        model: From images to features.
        head: From features to logits.
        data: At least ``steps`` batches.
        steps: Number of updates.
        learning_rate: At the top of the schedule.
        on_step: Called with the loss after every update.

    Returns:
        The loss of every step.

    Example:
        >>> images, labels = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
        >>> model, head = nn.Linear(1, 4), nn.Linear(4, 2)
        >>> losses = fit(model, head, iter([(images, labels)] * 20), steps=20, learning_rate=0.1)
        >>> losses[-1] < losses[0]
        True
    """
    trained = [parameter for module in (model, head) for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, steps))
    losses = []
    model.train()
    for images, labels in islice(data, steps):
        loss = cross_entropy(head(model(images)), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        on_step(losses[-1])
    model.eval()
    return losses


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: up over a tenth of the steps, then down along a cosine to nothing."""
    warm_up = max(steps // 10, 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))

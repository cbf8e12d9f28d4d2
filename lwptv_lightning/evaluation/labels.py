"""Whether labels and what a model returns belong together: classes for each label, and logits to tell them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lwptv_lightning.evaluation.heads import Heads
from lwptv_lightning.evaluation.interface import require_one_tensor
from lwptv_lightning.evaluation.metric_choice import AnyMetric, is_of_classes, require_classes, singles_of
from lwptv_lightning.functional import plain_module

_CLASSIFIERS = ("head", "fc", "classifier")
"""Where timm's and torchvision's models have their classifiers."""


def require_logits(model: nn.Module, heads: Heads, *metrics: AnyMetric) -> None:
    """Raise a `ValueError` where a model without a classifier has no heads either, and a metric looks at classes.

    Args:
        model: Its features would be taken for logits, of which the largest is some class.
        heads: What turns features into logits.
        metrics: Those of its loaders; by default top-1 accuracy.
    """
    model = plain_module(model)
    removed = [name for name in _CLASSIFIERS if isinstance(getattr(model, name, None), nn.Identity)]
    looked_at = any(map(is_of_classes, metrics or (None,)))
    if heads or not (getattr(model, "num_classes", None) == 0 or removed) or not looked_at:
        return
    reason = f"{removed[0]!r} is an Identity" if removed else "num_classes=0"
    raise ValueError(
        f"{type(model).__name__} returns features, as it has no classifier ({reason}), and there are no heads to make "
        "logits of them: give heads={'<set>': module}, the name of a set being what follows 'id/' or 'ood/'."
    )


def require_labels(loader: str, logits: Tensor, targets: Tensor, metric: AnyMetric | None = None) -> None:
    """Raise a `ValueError` with a loader's name where its labels are none, or beyond the number of classes.

    Args:
        loader: The loader's name.
        logits: ``(B, C, ...)``.
        targets: Labels in ``[0, C)``, ``(B, ...)`` integers.
        metric: One that does not look at single labels accepts others.

    Example:
        >>> import torch
        >>> require_labels("id/digits", torch.zeros(2, 10), torch.tensor([9, 0]))
        >>> require_labels("id/digits", torch.zeros(2, 10), torch.tensor([10, 0]))
        Traceback (most recent call last):
        ValueError: loader 'id/digits' has the label 10, but the model tells 10 classes apart, 0 to 9. Give it ...
    """
    if not (is_of_classes(metric) and isinstance(logits, Tensor) and isinstance(targets, Tensor)):
        return
    if logits.is_floating_point() and (logits.ndim < 2 or logits.shape[:1] + logits.shape[2:] != targets.shape):
        one_hot = " One-hot labels become such by argmax(1)." if logits.shape == targets.shape else ""
        raise ValueError(
            f"loader {loader!r} has targets of shape {tuple(targets.shape)}, expected one label for each of the logits "
            f"{tuple(logits.shape)}.{one_hot}"
        )
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"loader {loader!r} has targets of dtype {targets.dtype}, expected integer labels.")
    if not logits.is_floating_point():
        return  # labels already
    ignored = {getattr(single, "ignore_index", None) for single in singles_of(metric)} if metric is not None else {None}
    classes = logits.shape[1]
    if metric is not None:
        require_classes(loader, metric, classes)
    for label in targets.aminmax() if targets.numel() and ignored == {None} else torch.unique(targets):
        if not 0 <= int(label) < classes and int(label) not in ignored:
            raise ValueError(
                f"loader {loader!r} has the label {int(label)}, but the model tells {classes} classes apart, 0 to "
                f"{classes - 1}. Give it a head of its own classes, heads={{'<set>': module}}, or other labels."
            )


def require_classified(logits: object, model: nn.Module, *, dense: bool) -> Tensor:
    """Return logits ``(B, C)``, also ``(B, C, ...)`` where ``dense``, of several classes, whose softmax says something.

    Raises:
        TypeError: A model returned no tensor.
        ValueError: There is one class, whose probability is always 1, or another shape.

    Example:
        >>> import torch
        >>> require_classified(torch.zeros(8, 1), nn.Linear(4, 1), dense=False)
        Traceback (most recent call last):
        ValueError: Linear gives logits of shape (8, 1), expected (B, C) of at least two classes, ...
    """
    found = require_one_tensor(logits, model)
    if (found.ndim == 2 or (dense and found.ndim > 2)) and found.shape[1] > 1:
        return found
    raise ValueError(
        f"{type(plain_module(model)).__name__} gives logits of shape {tuple(found.shape)}, expected "
        f"{'(B, C, ...)' if dense else '(B, C)'} of at least two classes, whose probabilities are their softmax."
    )

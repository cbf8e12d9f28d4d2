"""What Fisher merging and RegMean need to know of a model on its own data, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lwptv_lightning.evaluation.inputs import each_sample
from lwptv_lightning.functional import plain_name, sum_dtype


def fisher_diagonal(
    logits: Callable[[Mapping[str, Tensor], Any], Tensor], parameters: Mapping[str, Tensor], inputs: Any
) -> dict[str, Tensor]:
    """Sum up the exact diagonal Fisher information over the examples of a batch: tensors in the parameters' shapes.

    For each example x: ``sum_y p(y|x) (d log p(y|x) / d theta)^2``, with the expectation over the model's own
    prediction, not over labels. Squares are summed up in float32 at least. It works inside ``torch.inference_mode``
    too, as Lightning validates.

    Inputs are ``(B, ...)``, or a dict, tuple or list of such tensors; ``logits`` maps parameters and the inputs of one
    example, ``(1, ...)``, to ``(1, C)``.

    Example:
        >>> weight = {"w": torch.zeros(1)}
        >>> two_classes = lambda p, x: torch.cat([x * p["w"], -x * p["w"]], dim=1)
        >>> fisher_diagonal(two_classes, weight, torch.tensor([[1.0], [2.0]]))["w"]  # p = 1/2: x^2 each
        tensor([5.])

    Reference:
        Matena and Raffel, arXiv 2111.09832. Later libraries square the gradient of a batch's sum, which is another
        quantity and depends on the size of the batch.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # Clones, since tensors made in inference mode cannot take part in a backward pass.
        own = {name: parameter.detach().clone().requires_grad_() for name, parameter in parameters.items()}
        wide = {name: sum_dtype(parameter.dtype) for name, parameter in parameters.items()}
        total = {name: torch.zeros_like(parameter, dtype=wide[name]) for name, parameter in parameters.items()}
        for example in each_sample(inputs):
            log_probabilities = logits(own, apply_to_collection(example, Tensor, torch.clone)).log_softmax(1)[0]
            classes = torch.eye(len(log_probabilities), device=log_probabilities.device, dtype=log_probabilities.dtype)
            gradients = torch.autograd.grad(
                log_probabilities, list(own.values()), classes, is_grads_batched=True, allow_unused=True
            )
            probabilities = log_probabilities.detach().exp()
            for name, gradient in zip(own, gradients, strict=True):
                if gradient is not None:  # the model's own classifier has no part in what a head gives
                    squares = gradient.to(wide[name]).square()
                    total[name] += torch.tensordot(probabilities.to(squares.dtype), squares, dims=1)
    return total


@contextmanager
def input_grams(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Sum up ``X^T X`` over the rows of the inputs of every linear layer that runs inside the ``with`` block.

    A 1x1 convolution is a linear layer whose rows are the positions that it looks at.

    Yields the name of a linear layer's weight to ``(in, in)``, filled as the layers run, and ``"<weight>.rows"`` to the
    number of rows, both float64.
    """
    grams: dict[str, Tensor] = {}

    def hook(name: str, layer: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        inputs = (arguments[0] if arguments else named["input"]).detach()
        inputs = inputs if isinstance(layer, nn.Linear) else _positions_of(inputs, layer)
        rows = inputs.reshape(-1, inputs.shape[-1]).double()
        for key, value in ((name, rows.T @ rows), (f"{name}.rows", rows.new_tensor(float(len(rows))))):
            grams[key] = grams[key] + value if key in grams else value

    with ExitStack() as hooks:
        for path, layer in module.named_modules():
            if isinstance(layer, nn.Linear) or _is_pointwise(layer):
                name = plain_name(f"{path}.weight".lstrip("."))
                hooks.enter_context(layer.register_forward_pre_hook(partial(hook, name), with_kwargs=True))
        yield grams


def _is_pointwise(layer: nn.Module) -> bool:
    """Tell whether a module is a 1x1 convolution of all channels."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return isinstance(layer, kinds) and set(layer.kernel_size) == {1} and layer.groups == 1


def _positions_of(inputs: Tensor, layer: Any) -> Tensor:
    """Return what a 1x1 convolution looks at, channels last, ``([B, ]in, *size) -> ([B, ]*positions, in)``."""
    dims = len(layer.kernel_size)
    if not isinstance(layer.padding, str) and any(layer.padding):
        sides = [side for width in reversed(layer.padding) for side in (width, width)]
        inputs = nn.functional.pad(
            inputs, sides, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode
        )
    strided: Any = (..., *(slice(None, None, step) for step in layer.stride))
    return inputs[strided].movedim(-1 - dims, -1)

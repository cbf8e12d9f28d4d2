"""Run a merge module with other tensors in the place of its model's, through which gradients may flow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lwptv_lightning.evaluation import MergeModule
from lwptv_lightning.functional import call_with, plain_name
from lwptv_lightning.merging import Undo, keep_modes


@dataclass(frozen=True)
class Substituted:
    """A merge module that runs with other tensors than its model's own.

    Attributes:
        module: The merge module.
        dtype: That of all floating tensors that it runs with.
    """

    module: MergeModule
    dtype: torch.dtype | str

    def tensors(self, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all tensors of the merge module as `run` takes them; its own parameters are fixed.

        Args:
            model: Name in the model to the tensor that is to stand there.
        """
        module = self.module
        own = {plain_name(name): name for name, _ in _tensors_of(module)}  # where something is compiled, the two differ
        replaced = {f"model.{name}": tensor for name, tensor in model.items()}
        state = _in_dtype(module.state_dict(keep_vars=True) | replaced, self.dtype)
        return {own[name]: tensor for name, tensor in state.items()}

    def run(self, tensors: Mapping[str, Tensor], inputs: Any, head: str | None) -> Any:
        """Return what the merge module returns with the tensors of `tensors`, as if nothing of it were compiled."""
        with torch.compiler.set_stance("force_eager"):
            return call_with(self.module, tensors, inputs, head)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Let a module and its parts be in evaluation mode in the ``with`` block, and then in the modes of before."""
    with Undo() as undo:
        keep_modes(module, undo)
        for part in module.modules():
            part.training = False  # not by `eval()`, in which a module may do more than that
        yield
        undo.take_back()


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _in_dtype(tensors: Mapping[str, Tensor], to: torch.dtype | str) -> dict[str, Tensor]:
    """Return tensors with the floating ones in a dtype; one under several names stays one, and parameters are fixed."""
    made: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in made:
            fixed = tensor.detach() if isinstance(tensor, nn.Parameter) else tensor
            made[id(tensor)] = fixed.to(to) if fixed.is_floating_point() else fixed  # type: ignore[arg-type]
    return {name: made[id(tensor)] for name, tensor in tensors.items()}

"""Running statistics of batch normalisation as plain averages over batches, for whatever runs the batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from lwptv_lightning.functional import plain_name
from lwptv_lightning.merging import Undo, in_dtype, keep_modes

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def norms_of(module: nn.Module) -> dict[str, BatchNorm]:
    """Return the layers with running statistics, by their paths.

    Example:
        >>> list(norms_of(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
        ['1']
    """
    named = module.named_modules()
    return {
        plain_name(path): layer for path, layer in named if isinstance(layer, BatchNorm) and layer.track_running_stats
    }


def of_norms(norms: Mapping[str, BatchNorm]) -> dict[str, BatchNorm]:
    """Return the names of the layers' statistics, each with its layer."""
    return {f"{path}.{name}".lstrip("."): norm for path, norm in norms.items() for name in STATISTICS}


@contextmanager
def measuring(model: nn.Module, norms: Mapping[str, BatchNorm]) -> Iterator[None]:
    """Let a model be in evaluation mode in the ``with`` block, but for its norms, whose statistics are a batch's own.

    What a batch has, its layers hold after it went through them; `NormAverages` adds it up. Modes and momenta are then
    those of before.
    """
    with Undo() as undo:
        keep_modes(model, undo)
        model.eval()
        for norm in norms.values():
            undo.add(setattr, norm, "momentum", norm.momentum)
            undo.add(setattr, norm, "training", norm.training)  # it may stand in a head
            norm.momentum = 1.0  # what a batch has, which is averaged apart
            norm.train()
        yield
        undo.take_back()


class NormAverages:
    """The plain averages of layers' statistics over batches, in float64: a low precision would round each step.

    Args:
        norms: Path to layer, of a model that is `measuring`.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1)).eval()
        >>> averages = NormAverages(norms_of(model))
        >>> with measuring(model, averages.norms), averages.adding():
        ...     _ = model(torch.tensor([[1.0], [3.0]])), model(torch.tensor([[5.0], [5.0]]))
        >>> averages.tensors()
        {'0.running_mean': tensor([3.5000]), '0.running_var': tensor([1.]), '0.num_batches_tracked': tensor(2)}
    """

    def __init__(self, norms: Mapping[str, BatchNorm]) -> None:
        self.norms = norms
        self._counts = dict.fromkeys(norms, 0)
        self._sums: dict[str, dict[str, Tensor]] = {path: {} for path in norms}
        self._dtypes: dict[str, torch.dtype] = {}

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Add what goes through the layers in the ``with`` block, whichever tensors stand in the place of theirs."""
        with ExitStack() as hooks:
            for path, norm in self.norms.items():

                def add(norm: nn.Module, *call: object, path: str = path) -> None:
                    self._add(path, norm)

                hooks.enter_context(norm.register_forward_hook(add))
            yield

    def _add(self, path: str, norm: nn.Module) -> None:
        self._counts[path] += 1
        sums = self._sums[path]
        for name in STATISTICS[:2]:
            own = getattr(norm, name)
            value = own.to(torch.float64, copy=True)
            sums[name] = sums[name] + value if name in sums else value
            self._dtypes[f"{path}.{name}"] = own.dtype
            own.zero_()  # an infinite one would spoil the next

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by the model's names of them, of the layers that a batch went through.

        Raises:
            ValueError: One overflows the layer's dtype.
        """
        found: dict[str, Tensor] = {}
        for path, count in self._counts.items():
            for name, total in self._sums[path].items():
                full = f"{path}.{name}".lstrip(".")
                found[full] = in_dtype(full, total / count, self._dtypes[f"{path}.{name}"])
            if count:
                found[f"{path}.{STATISTICS[2]}".lstrip(".")] = torch.tensor(count)
        return found

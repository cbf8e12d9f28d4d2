"""Which way a linear layer keeps its weight: ``(out, in)`` as torch does, or ``(in, out)`` as transformers' Conv1D.

PEFT writes one flag for a whole adapter, which is that of the layer it adapted last. So each layer is told by itself:
by its shape, and a square one by its module where that is at hand, or by the layers around it, whose biases tell how
long their outputs are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from lwptv_lightning.checkpoints.checkpoint import TensorHeader


@dataclass(frozen=True)
class Orientations:
    """Tells of each linear layer of a base whether its weight is ``(in, out)``.

    Args:
        headers: The base's tensors.
        adapted: Path of a layer to ``(in, out)``, of those that an adapter has factors for.
        modules: Modules by path, as far as they are at hand.
        flag: What PEFT says of the layer that it adapted last.
    """

    headers: Mapping[str, TensorHeader]
    adapted: Mapping[str, tuple[int, int]]
    modules: Mapping[str, nn.Module]
    flag: bool

    def is_transposed(self, path: str) -> bool | None:
        """Return whether the weight of a layer is ``(in, out)``, or None where nothing tells."""
        inputs, outputs = self.adapted[path]
        header = self.headers.get(f"{path}.weight")
        if header is None:
            return self.flag
        if inputs != outputs:
            return header.shape == (inputs, outputs)
        module = self.modules.get(path)
        if module is not None:
            return is_conv1d(module)
        return self._by_its_likes(path)

    def _by_its_likes(self, path: str) -> bool | None:
        """Tell a square layer by those of the same name elsewhere, or by the nearest ones around it."""
        last = path.rpartition(".")[2]
        known = self._known
        if not known:
            # Where none tells, all are alike: no model has Conv1D layers that are square one and all.
            names = {each.rpartition(".")[2] for each in self.adapted}
            return None if self.flag and len(names) > 1 else self.flag
        if self.flag and True not in known.values():
            return None  # the flag is that of a square layer, of which nothing tells which one it is
        alike = {is_so for each, is_so in known.items() if each.rpartition(".")[2] == last}
        around = path
        while not alike and around:
            around = around.rpartition(".")[0]
            inside = f"{around}." if around else ""
            alike = {is_so for each, is_so in known.items() if each.startswith(inside)}
        return alike.pop() if len(alike) == 1 else None

    @cached_property
    def _known(self) -> dict[str, bool]:
        """The layers that are not square, whose factors or bias tell which of their sides is the output."""
        known = dict(_by_bias(self.headers))
        for path, (inputs, outputs) in self.adapted.items():
            header = self.headers.get(f"{path}.weight")
            if header is not None and inputs != outputs:
                known[path] = header.shape == (inputs, outputs)
        return known


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' own linear layer, told by its name, since importing that takes seconds."""
    return type(module).__name__ == "Conv1D"


def _by_bias(headers: Mapping[str, TensorHeader]) -> Iterable[tuple[str, bool]]:
    for name, header in headers.items():
        path = name.removesuffix(".weight")
        bias = headers.get(f"{path}.bias")
        if path != name and bias is not None and len(header.shape) == 2 and len(bias.shape) == 1:
            rows, columns = header.shape
            if rows != columns and bias.shape[0] in header.shape:
                yield path, bias.shape[0] == columns

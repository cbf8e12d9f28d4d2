"""Where an adapter of PEFT holds the change of each tensor of a model, and the configuration that says so.

PEFT loads an adapter in three ways, of which a tensor gets the first that fits:

- two factors, for the weights of linear layers, of transformers' Conv1D, embeddings, convolutions and torch's fused
  attention;
- as part of a whole module (``modules_to_save``), such as a normalisation;
- whole, under its own name, as PEFT stores biases: loading puts it into the base itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from lwptv_lightning.checkpoints.adapter_modules import (
    ATTENTION,
    CONVOLUTION,
    EMBEDDING,
    LINEAR,
    TRANSPOSED,
    AdaptedModule,
    modules_by_names,
    modules_of,
)
from lwptv_lightning.checkpoints.checkpoint import TensorHeader
from lwptv_lightning.checkpoints.library_names import model_names
from lwptv_lightning.checkpoints.skeleton import tied_names

ROOT = "base_model.model."
"""What PEFT puts before every name."""
FACTORS, MODULE, WHOLE = "factors", "module", "whole"
_MARK = "lora_"
_PARTS = ("lora_A", "lora_B", "lora_dropout")
_INNER = ("base_layer", *_PARTS, *(f"{name}.default" for name in _PARTS))
"""What PEFT's own modules are called within one that it adapts."""
_PLAIN_PATH = re.compile(r"[\w-]+(\.[\w-]+)*")
"""A path that means itself where PEFT takes it for a pattern."""


@dataclass(frozen=True)
class Home:
    """How an adapter holds the change of one tensor.

    Attributes:
        way: ``"factors"``, ``"module"`` or ``"whole"``.
        path: The path of its module in the model.
        own: Its name there.
        kind: For factors, what the module is.
    """

    way: str
    path: str
    own: str
    kind: str | None = None


@dataclass(frozen=True)
class AdapterLayout:
    """Where an adapter holds the change of each tensor.

    Args:
        modules: Path to what is known of the module, of all modules.
        tied: Names in the checkpoint of tensors that are further ones of the model, too.
    """

    modules: Mapping[str, AdaptedModule]
    tied: Collection[str] = ()

    @classmethod
    def of_model(cls, headers: Mapping[str, TensorHeader], model: nn.Module) -> AdapterLayout:
        """Return the layout of a checkpoint's tensors, by the modules of the model that it is of.

        Example:
            >>> import torch
            >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
            >>> layout = AdapterLayout.of_model(TensorHeader.of_all(model.state_dict()), model)
            >>> {name: home.way for name, home in layout.homes.items()}
            {'0.weight': 'factors', '0.bias': 'whole', '1.weight': 'module', '1.bias': 'module'}
        """
        named = {new: name for name, new in model_names(model, list(headers)).items()}
        tied = tied_names(model)
        return cls(modules_of(model, named), frozenset(name for new, name in named.items() if new in tied))

    @classmethod
    def of_names(cls, headers: Mapping[str, TensorHeader], tied: Collection[str] = ()) -> AdapterLayout:
        """Return the layout of a checkpoint's tensors, as far as names and shapes tell what their modules are.

        What may be something else than a linear layer, as all convolutions may, which can have groups, is held whole.
        """
        return cls(modules_by_names(headers), frozenset(tied))

    @cached_property
    def homes(self) -> Mapping[str, Home]:
        """Name in the checkpoint to where its change is held; what the model does not have has no home."""
        return {
            name: self._home(path, own, name)
            for path, module in self.modules.items()
            for own, name in module.tensors.items()
            # What has PEFT's mark in its name is taken for a factor, and lost.
            if name is not None and (_MARK not in f"{path}.{own}" or self._has_factors(path, own, name))
        }

    def mates(self, path: str) -> dict[str, str]:
        """Return what must be held where a module is held as a whole: own path and name to name in the checkpoint.

        PEFT takes every module whose path ends alike.
        """
        return {
            f"{other}.{own}": name
            for other, module in self.modules.items()
            if other.endswith(path)
            for own, name in module.tensors.items()
            if name is not None
        }

    def key(self, home: Home, targets: Collection[str]) -> str:
        """Return the key of a tensor that is held whole, beside factors of some modules."""
        parent, _, last = home.path.rpartition(".")
        path = home.path
        if path in targets:
            path = f"{path}.base_layer"
        elif parent in targets and self.modules[parent].kind == ATTENTION:
            path = f"{parent}.base_layer.{last}.base_layer"  # PEFT adapts the output's projection together with it
        return f"{ROOT}{path}.{home.own}" if path else f"{ROOT}{home.own}"

    def configuration(
        self, ranks: Mapping[str, int], saved: Collection[str], whole: Collection[Home]
    ) -> dict[str, Any]:
        """Return what ``adapter_config.json`` says.

        Args:
            ranks: Path of a module to the rank of its factors.
            saved: Paths of the modules that are held whole.
            whole: Where the tensors are that are held under their own names.
        """
        usual = Counter(ranks.values()).most_common(1)[0][0]
        unusual = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != usual}
        linear = {kind for path in ranks if (kind := self.modules[path].kind) in (LINEAR, TRANSPOSED)}
        return {
            "peft_type": "LORA",
            "r": usual,
            "lora_alpha": usual,
            "rank_pattern": unusual,
            "alpha_pattern": unusual,
            "target_modules": self._targets(ranks),
            "modules_to_save": sorted(saved) or None,
            "bias": "all" if whole else "none",  # by which PEFT knows that the base is changed
            "fan_in_fan_out": linear == {TRANSPOSED},
            "lora_dropout": 0.0,
            "use_rslora": False,
            "inference_mode": True,
        }

    def _targets(self, wanted: Collection[str]) -> list[str] | str:
        """Return the full paths of some modules, or a pattern where one of these ends another module's path."""
        ends = tuple(f".{path}" for path in wanted)
        if any(path.endswith(ends) for path in self.modules if path not in wanted):
            return "|".join(map(re.escape, sorted(wanted)))
        return sorted(wanted)

    def _home(self, path: str, own: str, name: str) -> Home:
        if self._has_factors(path, own, name):
            return Home(FACTORS, path, own, self.modules[path].kind)
        return Home(MODULE if path in self._saved_whole else WHOLE, path, own)

    def _has_factors(self, path: str, own: str, name: str) -> bool:
        kind = self.modules[path].kind
        weight = "in_proj_weight" if kind == ATTENTION else "weight"
        return kind is not None and own == weight and name not in self.tied

    @cached_property
    def _saved_whole(self) -> frozenset[str]:
        copied = {path for path, module in self.modules.items() if self._is_copied(path, module)}
        adapted = [path for path, module in self.modules.items() if module.kind is not None]

        def fits(path: str) -> bool:
            if not self.modules[path].tensors or _PLAIN_PATH.fullmatch(path) is None:
                return False
            if any(other.endswith(path) and other not in copied for other in self.modules):
                return False
            if any(f"{other}.{inner}".endswith(path) for other in adapted for inner in _INNER):
                return False
            excluded = re.compile(rf"(^|.*\.){path}($|\..*)")  # as PEFT keeps factors out of it
            return not any(map(excluded.match, adapted))

        return frozenset(path for path in copied if fits(path))

    def _is_copied(self, path: str, module: AdaptedModule) -> bool:
        parent = self.modules.get(path.rpartition(".")[0])
        in_attention = parent is not None and parent.kind == ATTENTION
        is_tied = any(name in self.tied for name in module.tensors.values())
        return bool(path) and module.kind is None and module.is_plain and not is_tied and not in_attention


def factor_matrix(home: Home, change: Tensor) -> Tensor:
    """Return the matrix ``B A`` that a layer's change is for PEFT."""
    return change.T if home.kind in (TRANSPOSED, EMBEDDING) else change.flatten(1)


def factor_tensors(home: Home, b: Tensor, a: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return the tensors of an adapter, by their keys, that make a change of a shape; see `factor_matrix`."""
    root = f"{ROOT}{home.path}"
    if home.kind == EMBEDDING:
        return {f"{root}.lora_embedding_A": a, f"{root}.lora_embedding_B": b}
    if home.kind == CONVOLUTION:
        a, b = a.reshape(len(a), *shape[1:]), b.reshape(*b.shape, *(1 for _ in shape[2:]))
    found = {f"{root}.lora_A.weight": a, f"{root}.lora_B.weight": b}
    if home.kind == ATTENTION:  # PEFT adapts the output's projection together with it
        output, size = f"{root}.base_layer.out_proj", a.shape[1]
        found[f"{output}.lora_A.weight"] = a.new_zeros(len(a), size)
        found[f"{output}.lora_B.weight"] = a.new_zeros(size, len(a))
    return found

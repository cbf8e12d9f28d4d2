"""From the names, shapes and configuration of an adapter to the changes of its base's tensors; nothing is read yet."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from lwptv_lightning.checkpoints.adapter_changes import Change, Experts, Magnitudes, Product, Rows, Scaled
from lwptv_lightning.checkpoints.adapter_config import AdapterConfig
from lwptv_lightning.checkpoints.adapter_home import WEIGHTS, AdapterHome
from lwptv_lightning.checkpoints.adapter_names import AdaptedModule, AdapterNames
from lwptv_lightning.checkpoints.adapter_orientation import Orientations, is_conv1d
from lwptv_lightning.checkpoints.adapter_parameters import parameters_of
from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, TensorHeader
from lwptv_lightning.registry import nearest


@dataclass(frozen=True)
class Expansion:
    """Expands an adapter.

    Args:
        adapter: The adapter.
        config: Its configuration.
        home: Where it belongs.
        names: Its tensors.
    """

    adapter: Checkpoint
    config: AdapterConfig
    home: AdapterHome
    names: AdapterNames

    def changes(self) -> dict[str, list[Change]]:
        """Return what is added to each tensor of the base that the adapter changes, by the base's names.

        Raises:
            CheckpointError: Factors make no product, or what they belong to cannot be told.
        """
        found: defaultdict[str, list[Change]] = defaultdict(list)
        plain: list[AdaptedModule] = []
        by_path: defaultdict[str, list[AdaptedModule]] = defaultdict(list)
        for module in self.names.modules:
            by_path[module.path].append(module)
        for path, group in by_path.items():
            if parameters := self._targeted_parameters(path):
                for name, change in self._of_parameters(path, group, parameters):
                    found[name].append(change)
            else:
                plain += group
        alphas = self.config.alphas([self._outer(module) for module in plain])
        for module in plain:
            for name, change in self._of_module(module, alphas[self._outer(module)]):
                found[name].append(change)
        for path, stored in self.names.rows.items():
            name, change = self._of_rows(path, stored)
            found[name].append(change)
        return self._with_ties(found)

    def _of_module(self, module: AdaptedModule, alpha: float) -> Iterable[tuple[str, Change]]:
        self._require_parts(module)
        name = self._weight(module)
        scaling = self.config.scaling(alpha, self._rank(module))
        # PEFT merges the output of a fused attention twice, in what it trains as in what it returns.
        product = self._product(module, name, 2 * scaling if self._is_output(module) else scaling)
        if (magnitudes := module.parts.get("magnitude_vector")) is None:
            yield name, product
        else:
            self._require(name)
            outputs = product.shape[1 if product.transposed else 0]
            if self._shape(magnitudes) not in ((outputs,), (1, outputs, *(1 for _ in product.shape[2:]))):
                raise CheckpointError(
                    f"{self.adapter.source}: {magnitudes!r} has shape {self._shape(magnitudes)}, expected {outputs} "
                    "magnitudes."
                )
            yield name, Magnitudes(product, magnitudes)
        # That of fused projections has no effect in PEFT.
        if (bias := module.parts.get("B.bias")) is not None and name.endswith(".weight"):
            yield f"{name.removesuffix('.weight')}.bias", Scaled(bias, scaling, self._shape(bias))

    def _require_parts(self, module: AdaptedModule) -> None:
        """Raise a `CheckpointError` where the parts of a change are not those that the configuration tells of."""
        options, is_adalora = self.config.options, self.config.kind == "ADALORA"
        told = {
            "magnitude_vector": (bool(options.get("use_dora")), "use_dora is {}"),
            "E": (is_adalora, f"peft_type is {self.config.kind!r}"),
            "B.bias": (bool(options.get("lora_bias")), "lora_bias is {}"),
        }
        for part, (is_told, saying) in told.items():
            if (part in module.parts) != is_told:
                raise CheckpointError(
                    f"{self.adapter.source}: {module.path!r} {'lacks' if is_told else 'has'} a "
                    f"lora_{part}, while {saying.format(str(is_told).lower())} in "
                    f"{self.config.path.name}."
                )

    def _product(self, module: AdaptedModule, name: str, scaling: float) -> Product:
        a, b = module.parts["A"], module.parts["B"]
        which, count = self.config.diagonal_blocks(module.path)
        blocks = (count if which == "A" else 1, count if which == "B" else 1)
        left, right = self._shape(b), self._shape(a)
        rank = self._rank(module)
        if len(left) > 2 and len(right) > 2 and left[1] and left[1] != rank and rank % left[1] == 0:
            raise CheckpointError(
                f"{self.adapter.source}: {module.path!r} is a convolution with {rank // left[1]} groups, to which a "
                "product of factors without groups cannot be added; PEFT merges none either."
            )
        fits = len(right) > 1 and len(left) > 1 and left[1] * blocks[1] == rank and math.prod(left[2:]) == 1
        fits = fits and not (rank % blocks[0] or left[0] % blocks[1])
        values = module.parts.get("E")
        if not fits or not (rank or values) or (values and self._shape(values) != (rank, 1)):
            raise CheckpointError(
                f"{self.adapter.source}: the factors of {module.path!r}, {left} and {right}, have no product B A."
            )
        inputs, outputs = right[1] * blocks[0], left[0]
        header = self.home.header(name)
        if values is not None and header is not None and len(header.shape) > 2:  # AdaLoRA flattens convolutions
            shape: tuple[int, ...] = (outputs, *header.shape[1:])
            inputs = inputs if math.prod(shape[1:]) == inputs else 0
            return Product(a, b, scaling, shape if inputs else (outputs, right[1]), False, values)
        transposed = module.is_embedding or self._is_transposed(name)
        shape = (inputs, outputs) if transposed else (outputs, inputs, *right[2:])
        return Product(a, b, scaling, shape, transposed, values, blocks)

    def _is_transposed(self, name: str) -> bool:
        path = name.removesuffix(".weight")
        if path not in self._orientations.adapted:
            return False
        found = self._orientations.is_transposed(path)
        if found is None and (module := self.home.described.get(path)) is not None:
            found = is_conv1d(module)
        if found is None:
            raise CheckpointError(
                f"{self.adapter.source}: the weight of {path!r} is square, and nothing tells whether it is (out, in), "
                "or (in, out) as in the Conv1D layers of transformers; give the base as a module or with its "
                "config.json, or the fine-tuned model that merge_and_unload() returns."
            )
        return found

    @cached_property
    def _orientations(self) -> Orientations:
        """Of the modules that may be linear layers."""
        adapted = {}
        for module in self.names.modules:
            a, b = self._shape(module.parts["A"]), self._shape(module.parts["B"])
            name = self._weight(module)
            if not module.is_embedding and len(a) == len(b) == 2 and name.endswith(".weight"):
                which, count = self.config.diagonal_blocks(module.path)
                adapted[name.removesuffix(".weight")] = (a[1] * count if which == "A" else a[1], b[0])
        return Orientations(self.home.base.headers, adapted, self.home.modules, self.config.stores_transposed)

    def _of_parameters(
        self, path: str, group: Sequence[AdaptedModule], parameters: Sequence[str]
    ) -> Iterable[tuple[str, Change]]:
        group = sorted(group, key=lambda module: module.depth)
        names = {parameter: self.home.rename(f"{path}.{parameter}") for parameter in parameters}
        shapes = {parameter: self._require(name).shape for parameter, name in names.items()}
        factors = [(self._shape(module.parts["A"]), self._shape(module.parts["B"])) for module in group]
        at = self.home.rename(f"{path}.weight").removesuffix(".weight")
        found = parameters_of(factors, shapes, self.home.modules.get(at))
        if found is None and (module := self.home.described.get(at)) is not None:
            found = parameters_of(factors, shapes, module)
        if found is None or [module.depth for module in group] != list(range(len(group))):
            raise CheckpointError(
                f"{self.adapter.source}: nothing tells which factors of {path!r} belong to which of its parameters, "
                f"{', '.join(f'{parameter} {shape}' for parameter, shape in shapes.items())}, or which way they "
                "stand; give the base as a module or with its config.json, or the fine-tuned model that "
                "merge_and_unload() returns."
            )
        alphas = self.config.alphas([f"{path}.{each.name}" for each in found])
        for each in found:
            parts, shape = group[each.depth].parts, shapes[each.name]
            rank = self._shape(parts["A"])[0] // (shape[0] if len(shape) == 3 else 1)
            if not rank:
                raise CheckpointError(f"{self.adapter.source}: the factors of {path!r} have no product B A.")
            scaling = self.config.scaling(alphas[f"{path}.{each.name}"], rank)
            if len(shape) == 2:
                yield names[each.name], Product(parts["A"], parts["B"], scaling, shape)
            else:
                yield names[each.name], Experts(parts["A"], parts["B"], scaling, shape, each.transposed)

    def _of_rows(self, path: str, stored: str) -> tuple[str, Change]:
        name = self.home.rename(f"{path}.weight")
        shape, indices = self._require(name).shape, self.config.token_indices(path)
        wrong = [index for index in indices if not 0 <= index < shape[0]]
        if wrong or len(set(indices)) < len(indices) or self._shape(stored) != (len(indices), *shape[1:]):
            raise CheckpointError(
                f"{self.adapter.source}: {stored!r} of shape {self._shape(stored)} does not hold the {len(indices)} "
                f"rows that {self.config.path.name} names of {name!r}, which has shape {shape}."
            )
        return name, Rows(stored, tuple(indices), shape)

    def _with_ties(self, found: dict[str, list[Change]]) -> dict[str, list[Change]]:
        """Return the changes with those of tied weights under each of their names, as PEFT merges them in place."""
        made = dict(found)
        for group in self.ties if found else ():
            parts = self._without_copies(change for name in sorted(group) for change in found.get(name, ()))
            if not parts:
                continue
            is_doubled = self.config.options.get("ensure_weight_tying") and len(parts) > 1
            if is_doubled or (len(parts) > 1 and any(not isinstance(each, Product) for each in parts)):
                raise CheckpointError(
                    f"{self.adapter.source}: several tensors change {' and '.join(map(repr, sorted(group)))}, which "
                    "are one tensor of the base, and what PEFT merges there is not what it trained; give the "
                    "fine-tuned model that merge_and_unload() returns."
                )
            for name in group:
                made.pop(name, None)
            made |= {name: parts for name in group if self.home.header(name)}
        return made

    def _without_copies(self, changes: Iterable[Change]) -> list[Change]:
        """Return changes without rows that are there once more: those of a tied head stand in its own name, too."""
        parts: list[Change] = []
        for change in changes:
            rows = [each for each in parts if isinstance(each, Rows)]
            if not isinstance(change, Rows) or not any(
                each.indices == change.indices and torch.equal(*map(self.adapter.read, (each.name, change.name)))
                for each in rows
            ):
                parts.append(change)
        return parts

    @cached_property
    def ties(self) -> list[list[str]]:
        """Groups of names that are one tensor of the base, as far as the adapter changes one of them."""
        changed = {self.home.rename(name) for name in self.names.whole}
        changed |= {self._weight(module) for module in self.names.modules}
        changed |= {self.home.rename(f"{path}.weight") for path in self.names.rows}
        if all(map(_is_numbered, changed)):
            return []
        found = [group for group in self.home.tied if not changed.isdisjoint(group)] + self._copied
        lacking = {name for name in changed if not (self.home.header(name) or _is_numbered(name))}
        if lacking.difference(*found):
            found += [group for group in self.home.tied_by_description if not lacking.isdisjoint(group)]
        return _joined(found)

    @cached_property
    def _copied(self) -> list[list[str]]:
        """Names that the base lacks, each with that of the tensor which PEFT saved under it once more."""
        base = self.home.base
        found = []
        for name, stored in self.names.whole.items():
            name, shape = self.home.rename(name), self._shape(stored)
            if name not in base.headers and len(shape) > 1 and not _is_numbered(name):
                likes = (
                    other for other, header in base.headers.items() if header.shape == shape and not _is_numbered(other)
                )
                found += [[name, other] for other in likes if is_copy(self.adapter, stored, base, other)]
        return found

    def _targeted_parameters(self, path: str) -> list[str]:
        """Return the parameters of a module that ``target_parameters`` names."""
        found = []
        for target in self.config.names("target_parameters"):
            parent, _, name = target.rpartition(".")
            if not parent or path == parent or path.endswith(f".{parent}"):
                found.append(name)
        every = {name: self.home.rename(f"{path}.{name}") for name in found}
        held = [name for name, renamed in every.items() if self.home.header(renamed)]
        if not held and every and not any(self.home.header(self.home.rename(f"{path}.{each}")) for each in WEIGHTS):
            self._require(min(every.values()), " Where a file holds experts one by one, give the base as a module.")
        return held

    def _weight(self, module: AdaptedModule) -> str:
        """Return the base's name for the weight of a module; that of a fused attention's projections has its own."""
        if module.path in self._attentions:
            return self.home.rename(f"{module.path}.in_proj_weight")
        return self.home.rename(f"{module.path}.weight")

    @cached_property
    def _attentions(self) -> set[str]:
        """The paths of what is adapted as a whole, with the projections in it."""
        within = {module.path.rpartition(".")[0] for module in self.names.modules if module.is_within}
        return {path for path in within if self.home.header(self.home.rename(f"{path}.in_proj_weight"))}

    def _is_output(self, module: AdaptedModule) -> bool:
        """Whether a module is the output of a fused attention."""
        return module.is_within and module.path.rpartition(".")[0] in self._attentions

    def _outer(self, module: AdaptedModule) -> str:
        """Return the path that PEFT matches its patterns with."""
        return module.path.rpartition(".")[0] if self._is_output(module) else module.path

    def _rank(self, module: AdaptedModule) -> int:
        return self._shape(module.parts["A"])[0] if self._shape(module.parts["A"]) else 0

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.adapter.headers[name].shape

    def _require(self, name: str, hint: str = "") -> TensorHeader:
        header = self.home.header(name)
        if header is None:
            base = self.home.base
            raise CheckpointError(
                f"{self.adapter.source}: the base has no tensor {name}.{nearest(name, base.names)} "
                f"Expected {base.source} to be the model that was fine-tuned.{hint}"
            )
        return header


def _joined(groups: Iterable[Sequence[str]]) -> list[list[str]]:
    """Return groups without a name in common, each of those that had one joined."""
    found: list[list[str]] = []
    for group in groups:
        meeting = [each for each in found if not set(each).isdisjoint(group)]
        found = [each for each in found if each not in meeting]
        found.append(list(dict.fromkeys(name for each in (*meeting, group) for name in each)))
    return found


def _is_numbered(name: str) -> bool:
    """Whether a tensor is of one of many layers, whose weights are not tied to others."""
    return any(part.isdigit() for part in name.split("."))


def is_copy(adapter: Checkpoint, stored: str, base: Checkpoint, name: str) -> bool:
    """Whether an adapter holds a tensor of its base, which is of another precision there at most."""
    if name not in base.headers or base.headers[name].shape != adapter.headers[stored].shape:
        return False
    values = adapter.read(stored)
    return torch.equal(base.read(name).to(values.dtype), values)

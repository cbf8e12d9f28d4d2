"""`Keys`: all that decides what a candidate gets right, as plain values, but for the data that it is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, nn

from lwptv_lightning.checkpoints import Provenance
from lwptv_lightning.evaluation import MergeModule
from lwptv_lightning.functional import plain_name
from lwptv_lightning.merging import fingerprint_of_data, installable, provenance_of
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.search.digests import architecture_of, digest_of, settings_of
from lwptv_lightning.search.gates import Gates

_OF_RECIPES = ("lwptv_recipe", "lwptv_scale", "lwptv_versions")
_MATTERS_NOT = ("execution", "ranks", "max_memory", "device", "data", "dtype", "task")
"""Options of merging that change no bit, or that stand elsewhere among what decides."""


@dataclass(frozen=True)
class Keys:
    """What candidates of one sweep have in common.

    The code of a model, of a rule, of a hook or of a module of one's own is not among it: only its name, its plain
    settings and what it says of itself.

    Attributes:
        common: Task vectors, architecture, heads, options, precision and versions.
        data: What was collected on data and given.
    """

    common: Mapping[str, Any]
    data: Any = None

    @classmethod
    def of(cls, trainer: Trainer, module: MergeModule, loaders: Iterable[str], options: Mapping[str, Any]) -> Keys:
        """Read off what will be evaluated; files are hashed for it, once.

        Raises:
            TypeError: It cannot be told of something whether another sweep has the same.
        """
        vectors = module.held_vectors
        told = {} if vectors is None else provenance_of(vectors, MergeRecipe(), None).to_metadata()
        given = {name: value for name, value in options.items() if name not in _MATTERS_NOT and value is not None}
        data = options.get("data")
        if isinstance(given.get("statistics"), Mapping):
            data = given.pop("statistics")
        common = {
            "vectors": {name: value for name, value in told.items() if name not in _OF_RECIPES},
            "model": _of_model(module),
            "module": _of_module(module),
            "interface": module.interface.to_dict(),
            "heads": {loader: _of_head(module, loader) for loader in loaders},
            "options": {name: digest_of(value) for name, value in given.items()},
            "precision": str(trainer.precision),
            "device": trainer.strategy.root_device.type,
            "versions": dict(Provenance.current_versions()),
        }
        return cls(common, data)

    def of_recipe(self, recipe: MergeRecipe, samples: str | None, *, recalibrated: bool) -> dict[str, Any]:
        """Return what decides of a recipe.

        Args:
            recipe: The recipe, with what options change of it.
            samples: The samples' digest, where it looks at them.
            recalibrated: Whether running statistics are measured on them.
        """
        found = {"recipe": recipe.to_dict(), "scale": recipe.effective_scale}
        if recipe.rule.needs:
            found["data"] = {"samples": samples} if self.data is None else {"given": fingerprint_of_data(self.data)}
        if recalibrated:
            found["recalibrated"] = samples
        return {**self.common, "candidate": found}

    def of_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what decides of weights that are given."""
        return {**self.common, "candidate": {"weights": digest_of(dict(weights))}}

    def of_gates(self, gates: Gates, module: MergeModule, loaders: Iterable[str], samples: str) -> dict[str, Any]:
        """Return what decides what gates learn on some loaders of a module's tasks, which `Samples.digest` tells."""
        common = {name: value for name, value in self.common.items() if name != "heads"}
        heads = {loader: _of_head(module, loader) for loader in loaders}
        return {**common, "heads": heads, "gates": digest_of(gates.key(module)), "samples": samples}


def _of_module(module: MergeModule) -> str:
    """Return a merge module's class, with the settings that a class of one's own has besides."""
    # Also what it sets where an attribute of the class stood before, as a sweep does with the memo.
    usual = {*vars(MergeModule), *vars(MergeModule(nn.Identity()))}
    return f"{type(module).__module__}.{type(module).__qualname__} {digest_of(settings_of(module, usual))}"


def _of_model(module: MergeModule) -> str:
    """Return a digest of an architecture and of those of its tensors that no candidate replaces."""
    model, vectors = module.model, module.held_vectors
    replaced = () if vectors is None else installable(model, vectors)
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    # A classifier in whose place heads act has random weights, and no part in any figure.
    aside = {*replaced, *module.heads.instead_of}
    rest = {plain_name(name): tensor for name, tensor in tensors if plain_name(name) not in aside}
    exact = {}
    if vectors is not None:  # fingerprints are of what floats
        headers = {name: header for name, header in vectors.headers.items() if name in replaced}
        exact = {name: vectors.base(name) for name, header in headers.items() if not header.dtype.is_floating_point}
    return digest_of(architecture_of(model), sorted(replaced), rest, exact)


def _of_head(module: MergeModule, loader: str) -> str | None:
    name = module.head_of(loader)
    if name is None:
        return None
    return digest_of(module.heads[name], list(module.heads.place(name, module.model)))

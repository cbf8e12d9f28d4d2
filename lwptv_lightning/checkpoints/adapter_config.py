"""The ``adapter_config.json`` beside a PEFT adapter: what kind it is, and how its factors are scaled.

What is no linear change of the base's weights, or belongs to a base that its initialisation changed, is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError
from lwptv_lightning.checkpoints.patterns import first_endings
from lwptv_lightning.files import InputFile, beside
from lwptv_lightning.registry import parse_json, shown

CONFIG_FILE = "adapter_config.json"
_KINDS = ("LORA", "ADALORA", "TRAINABLE_TOKENS")
_INPUTS_ONLY = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
"""Kinds that learn inputs and change no weight."""
_MOST_ALPHA = 1e30
"""Beyond it no product is finite."""
_REFUSED = {
    "use_qalora": "QA-LoRA pools the inputs",
    "alora_invocation_tokens": "it acts on some tokens only",
    "arrow_config": "Arrow mixes adapters token by token",
    "kasa_config": "KaSA cuts the base's smallest singular values off",
    "layer_replication": "the layers of its model are copies of the base's that share weights",
}
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that change the base's weights, so that the adapter does not belong to the original base."""


@dataclass(frozen=True)
class AdapterConfig:
    """What an ``adapter_config.json`` says, checked.

    Attributes:
        file: The file.
        options: Its content.
    """

    file: InputFile
    options: Mapping[str, Any]

    @classmethod
    def beside(cls, adapter: Checkpoint) -> AdapterConfig:
        """Read and check the configuration beside an adapter.

        Raises:
            CheckpointError: There is none, or none that can be read; or it is of a kind whose change of the weights
                is not the adapter's alone.
        """
        file = _configuration_file(adapter)
        try:
            options: dict[str, Any] = parse_json(file.text(), "it")
        except (OSError, ValueError) as error:
            raise _unreadable(adapter, error) from error
        if not isinstance(options, dict):
            raise CheckpointError(f"{file.path}: expected a mapping of options, not {shown(options)}.")
        _check_kind(file.path, options)
        _check_numbers(file.path, options)
        return cls(file, options)

    @property
    def path(self) -> Path:
        """Where the file stands."""
        return self.file.path

    @property
    def kind(self) -> str:
        """PEFT's name of the kind: LORA, ADALORA or TRAINABLE_TOKENS."""
        return str(self.options["peft_type"])

    @property
    def stores_transposed(self) -> bool:
        """Whether the linear layer that PEFT adapted last is a Conv1D of transformers; it says no more than that."""
        return bool(self.options.get("fan_in_fan_out"))

    def names(self, option: str) -> list[str]:
        """Return a list of texts, empty where the option is not given.

        Raises:
            CheckpointError: It is something else.
        """
        return self._texts(self.options, option)

    def _texts(self, options: Mapping[str, Any], option: str) -> list[str]:
        found = options.get(option) or []
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise CheckpointError(f"{self.path}: {option} must be a list of names, not {shown(found)}.")
        return found

    def scaling(self, alpha: float, rank: int) -> float:
        """Return what the product of two factors of a rank is multiplied by."""
        if self.kind == "ADALORA":
            initial = self.number(self.options, "init_r", 12)
            return (alpha if alpha > 0 else rank) / (initial + 1e-5)
        if not rank:
            return 0.0
        return alpha / math.sqrt(rank) if self.options.get("use_rslora") else alpha / rank

    def number(self, options: Mapping[str, Any], key: str, default: int) -> int:
        """Return a positive whole number among some options.

        Raises:
            CheckpointError: It is something else.
        """
        found = options.get(key, default)
        if type(found) is not int or not 0 < found < _MOST_ALPHA:
            raise CheckpointError(f"{self.path}: {key} must be a positive whole number, not {shown(found)}.")
        return found

    def alphas(self, modules: Sequence[str]) -> dict[str, float]:
        """Return each module's alpha: that of the first pattern that ends its path, as PEFT does, or the common one.

        Raises:
            CheckpointError: A pattern is none, or they take too long.
        """
        patterns = {} if self.kind == "ADALORA" else self.options.get("alpha_pattern") or {}
        try:
            found = first_endings(list(patterns), modules)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: alpha_pattern has {error}.") from error
        common = self.options.get("lora_alpha", 8)
        return {
            module: common if pattern is None else patterns[pattern]
            for module, pattern in zip(modules, found, strict=True)
        }

    def diagonal_blocks(self, module: str) -> tuple[str, int]:
        """Return which factor of a module, ``"A"`` or ``"B"``, BD-LoRA stores as so many blocks of a diagonal."""
        blocks = self.options.get("use_bdlora")
        if not isinstance(blocks, dict):
            return "", 1
        for factor in "AB":
            if any(part in module for part in self._texts(blocks, f"target_modules_bd_{factor.lower()}")):
                return factor, self.number(blocks, "nblocks", 1)
        return "", 1

    def token_indices(self, module: str) -> list[int]:
        """Return the rows of a module's embedding that were trained.

        Raises:
            CheckpointError: The configuration does not name them.
        """
        found = self.options.get("token_indices" if self.kind == "TRAINABLE_TOKENS" else "trainable_token_indices")
        if isinstance(found, dict):
            ends = [key for key in found if module == key or module.endswith(f".{key}")]
            found = found[ends[0]] if len(ends) == 1 else None
        if not isinstance(found, list) or not all(type(each) is int for each in found):
            raise CheckpointError(f"{self.path}: expected the indices of the tokens trained in {module!r}.")
        return found


def has_configuration(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is the file that PEFT puts beside an ``adapter_config.json``."""
    files = checkpoint.inputs[:1]
    return (
        checkpoint.folder is not None
        and any(file.path.name.startswith("adapter_model.") for file in files)
        and (checkpoint.folder / CONFIG_FILE).exists()
    )


def _configuration_file(adapter: Checkpoint) -> InputFile:
    if adapter.folder is None:
        factor = next((name for name in adapter.names if ".lora_" in name), adapter.names[0])
        raise CheckpointError(
            f"{adapter.source}: {factor!r} is a factor of LoRA, whose scaling stands in an adapter_config.json, and "
            "weights in memory have none beside them; give the adapter's folder instead."
        )
    origin = adapter.inputs[0].path if adapter.inputs else None
    try:
        path = beside(adapter.folder, CONFIG_FILE, CheckpointError, origin=origin)
        return InputFile.at(path, CheckpointError)
    except (OSError, ValueError) as error:
        raise _unreadable(adapter, error) from error


def _unreadable(adapter: Checkpoint, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{adapter.source}: holds LoRA factors, whose scaling stands in an adapter_config.json beside them that "
        f"cannot be read ({error})."
    )


def _check_kind(path: Path, options: Mapping[str, Any]) -> None:
    """Raise a `CheckpointError` where an adapter is no change of the base's weights that its file alone tells."""
    kind = options.get("peft_type")
    if kind not in _KINDS:
        hint = "merge it into its base first, by merge_and_unload() where PEFT has that for this kind."
        if kind in _INPUTS_ONLY:
            hint = "it learns inputs and changes no weight, so that there is nothing to merge."
        raise CheckpointError(f"{path}: peft_type is {shown(kind)}, expected {_listed(_KINDS)}; {hint}")
    for option, reason in _REFUSED.items():
        if options.get(option):
            raise CheckpointError(f"{path}: {option} is not supported, because {reason}; merge it into its base first.")
    start = str(options.get("init_lora_weights")).lower()
    if start.startswith(_BASE_CHANGING):
        raise CheckpointError(
            f"{path}: init_lora_weights={start!r} changed the base's weights, so the adapter does not fit the original "
            "base; convert it to plain LoRA or merge it into its base first."
        )


def _listed(names: Iterable[str]) -> str:
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}"


def _check_numbers(path: Path, options: Mapping[str, Any]) -> None:
    """Raise a `CheckpointError` where the scaling cannot be computed from a configuration."""
    patterns = options.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(
            f"{path}: alpha_pattern must map patterns of modules to numbers, not be {shown(patterns)}."
        )
    alphas = {"lora_alpha": options.get("lora_alpha", 8)} | {
        f"alpha_pattern of {key!r}": patterns[key] for key in patterns
    }
    for what, alpha in alphas.items():
        if type(alpha) not in (int, float) or not -_MOST_ALPHA < alpha < _MOST_ALPHA:
            raise CheckpointError(f"{path}: {what} must be a number, not {shown(alpha)}.")

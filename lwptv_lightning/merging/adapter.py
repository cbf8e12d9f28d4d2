"""The merged task vector as a LoRA adapter of PEFT, one tensor after the other."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from lwptv_lightning.checkpoints import (
    FACTORS,
    WHOLE,
    AdapterLayout,
    Checkpoint,
    Spool,
    model_names,
    skeleton_of,
    skeleton_problem,
)
from lwptv_lightning.files import require_free_folder, whole_folder
from lwptv_lightning.functional import plain_module
from lwptv_lightning.layers import Layers
from lwptv_lightning.merging.factors import AdaptedLayer, Factors, relative
from lwptv_lightning.merging.merge import Merge, MergeOptions
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import require_kind, require_whole, shown
from lwptv_lightning.task_vectors import TaskVectors

_WEIGHTS, _CONFIGURATION, _REPORT = "adapter_model.safetensors", "adapter_config.json", "lwptv_adapter.json"
_FILES = frozenset((_WEIGHTS, _CONFIGURATION, _REPORT, "README.md"))
"""What may stand in an adapter's folder that is replaced."""
_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".json")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_ON_HUB = re.compile(r"models--(?P<owner>[^/\\]+?)--(?P<name>[^/\\]+)$")
_TASKS = {"CAUSAL_LM": r".*(ForCausalLM|LMHeadModel)", "SEQ_2_SEQ_LM": r".*ForConditionalGeneration"}


@dataclass(frozen=True)
class SavedAdapter:
    """What `save_adapter` wrote.

    Attributes:
        path: The folder.
        layers: The layers with factors, in the order in which they were made.
        modules: Paths of the modules that are held whole, and are a part of the adapter (``modules_to_save``).
        whole: Names of the tensors that are held whole, and that PEFT puts into the base itself as it loads.
        dropped: Name of each changed tensor that is lost, with its share of the whole task vector's norm.
        excluded: Globs of the tensors that were not merged, such as a task's own classifier.
        error: Frobenius norm of all that is lost, in factors and dropped tensors, relative to the task vector's.
        told_by: ``"model"``, or ``"names"`` where names and shapes alone told which layers are linear.
    """

    path: Path
    layers: tuple[AdaptedLayer, ...]
    modules: tuple[str, ...]
    whole: tuple[str, ...]
    dropped: Mapping[str, float]
    excluded: tuple[str, ...]
    error: float
    told_by: str

    @property
    def worst(self) -> AdaptedLayer | None:
        """The layer with the largest relative error."""
        return max(self.layers, key=lambda layer: layer.error, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, without the path."""
        values = asdict(self)
        del values["path"]
        return values


def save_adapter(
    vectors: TaskVectors,
    recipe: MergeRecipe | str | Mapping[str, Any],
    path: str | Path,
    rank: int | float | str,
    layers: Layers | None = None,
    *,
    model: nn.Module | None = None,
    stored_dtype: torch.dtype = torch.float32,
    drop_rest: bool = False,
    overwrite: bool = False,
    **options: Unpack[MergeOptions],
) -> SavedAdapter:
    """Merge, and write the merged task vector as a LoRA adapter that PEFT loads onto the base.

    The weights of linear layers, of transformers' Conv1D, of embeddings, of convolutions and of torch's fused attention
    become two factors; a layer whose tasks are all pruned has none. Normalisations with their running statistics, and
    other modules that PEFT can copy, are held whole; so are biases and single tensors, which PEFT puts into the base
    itself. Tied weights are held whole, since two layers' factors would add up.

    Args:
        vectors: The task vectors.
        recipe: Rule, scale and pruning; the name of a rule will do.
        path: The folder to write, which appears in one step when all in it is whole.
        rank: What the factors have at most; a fraction in (0, 1) for the least rank that keeps this share of each
            layer's squared norm; ``"full"`` to lose nothing.
        layers: From `trace_layers`; by default made from the tensors' names.
        model: The module that the weights belong to, whose modules tell what each tensor is. By default what the base's
            library builds of the configuration beside it, a timm, transformers or open_clip folder; else names and
            shapes tell, and what they leave open is held whole.
        stored_dtype: The factors' dtype. What is held whole has the base's.
        drop_rest: Whether to write the adapter without changed tensors that it cannot hold: those that the model has
            under no name, such as experts that transformers combines.
        overwrite: Whether to replace a folder that holds an adapter.
        options: Those of `MergeOptions`.

    Returns:
        What was written, with the error of each layer. ``lwptv_adapter.json`` in the folder says the same.

    Raises:
        ValueError: The rank is none; the model has no layer that PEFT adapts; the adapter cannot hold a changed tensor;
            there are several processes; or as in `merge`.
        FileExistsError: There is such a folder, and ``overwrite`` is false.

    Warns:
        UserWarning: The base's configuration is there, and its library builds no model of it.

    Example:
        >>> import tempfile
        >>> base = {"fc.weight": torch.zeros(3, 2), "fc.bias": torch.zeros(3)}
        >>> vectors = TaskVectors.open(base, {"a": {"fc.weight": torch.ones(3, 2), "fc.bias": torch.ones(3)}})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = save_adapter(vectors, MergeRecipe(scale=1.0), f"{folder}/adapter", rank=1)
        >>> [(layer.name, layer.rank, round(layer.error, 3)) for layer in saved.layers], saved.whole
        ([('fc.weight', 1, 0.0)], ('fc.bias',))

    Reference:
        LoRA https://arxiv.org/abs/2106.09685; the factors are those of a truncated singular value decomposition.
    """
    wanted = parse_rank(rank)
    path = Path(path)
    merge, execution = Merge.of(vectors, recipe, layers, options, save_adapter)
    require_kind("model", model, nn.Module | None, "a module")
    if stored_dtype not in _DTYPES:
        raise ValueError(f"stored_dtype must be one of {', '.join(map(str, _DTYPES))}, not {shown(stored_dtype)}.")
    if execution.ranks.size > 1:
        raise ValueError("an adapter is written by one process; merge without ranks.")
    require_adapter_place(path, overwrite=overwrite)
    model = _skeleton(vectors) if model is None else plain_module(model)
    layout = _layout(vectors, model)
    plan = merge.plan(execution)
    with whole_folder(path, overwrite=overwrite, belongs=_belongs) as folder:
        with closing(Spool(folder.parent / "spool")) as spool:
            made = Factors(plan, layout, wanted, stored_dtype, spool)
            made.make(drop_rest=drop_rest)
            plan.require_unchanged()
            saved = _saved(made, path, "names" if model is None else "model")
            about = {"rank": rank, "error": saved.error}
            metadata = replace(plan.provenance(), kind="adapter").to_metadata() | {"lwptv_adapter": json.dumps(about)}
            made.write(folder / _WEIGHTS, metadata)
        whole = [home for home in made.whole.values() if home.way == WHOLE]
        config = _about_base(vectors, model) | layout.configuration(made.ranks, made.modules, whole)
        (folder / _REPORT).write_text(json.dumps({"rank": rank, **saved.to_dict()}, indent=1), encoding="utf-8")
        (folder / _CONFIGURATION).write_text(json.dumps(config, indent=1), encoding="utf-8")
    return saved


def parse_rank(rank: int | float | str) -> float | None:
    """Return a rank as `lwptv_lightning.functional.low_rank_factors` takes it.

    Args:
        rank: A whole number of at least 1, a fraction in (0, 1), one of them as text, or ``"full"``.

    Example:
        >>> parse_rank("full"), parse_rank("16"), parse_rank(0.9)
        (None, 16, 0.9)
    """
    if rank == "full":
        return None
    value: Any = rank
    if isinstance(rank, str):
        try:
            value = int(rank) if rank.strip().isdecimal() else float(rank)
        except ValueError:
            value = None
    if isinstance(value, float) and 0 < value < 1:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return require_whole("rank", value)
    raise ValueError(
        f"rank must be a whole number of at least 1, a fraction in (0, 1) of the squared norm to keep, or 'full', "
        f"not {shown(rank)}."
    )


def require_adapter_place(path: Path, *, overwrite: bool) -> None:
    """Raise, before any work, where no adapter can be written to a folder; see `save_adapter`.

    Raises:
        ValueError: The path has the name of a file.
        FileExistsError: There is a folder, and ``overwrite`` is false or it holds something else.
        OSError: Nothing can be written there.
    """
    if path.suffix in _SUFFIXES:
        raise ValueError(f"an adapter is written to a folder, not to a file such as {shown(str(path))}.")
    require_free_folder(path, overwrite=overwrite, belongs=_belongs)


def _belongs(entry: Path) -> bool:
    return entry.name in _FILES


def _skeleton(vectors: TaskVectors) -> nn.Module | None:
    """Return the model that the base's folder describes, where the task vectors have names of it."""
    base = vectors.checkpoints[0]
    model = skeleton_of(base)
    if model is None and (problem := skeleton_problem(base)) is not None:
        told = "names and shapes alone tell what its layers are; model=... tells for sure."
        warnings.warn(f"{base.folder}: {problem}; {told}", stacklevel=3)
    return model if model is not None and model_names(model, list(vectors.headers)) else None


def _layout(vectors: TaskVectors, model: nn.Module | None) -> AdapterLayout:
    if model is not None:
        _require_shapes(vectors, model)
    if model is None:
        layout = AdapterLayout.of_names(vectors.headers, {*vectors.tied, *vectors.tied.values()})
    else:
        layout = AdapterLayout.of_model(vectors.headers, model)
    if not any(home.way == FACTORS for home in layout.homes.values()):
        told = "the names tell" if model is None else f"{type(model).__name__} has"
        hint = " Give the model that the weights belong to: model=..." if model is None else ""
        raise ValueError(
            f"no adapter can be made: {told} no linear layer, embedding, convolution or fused attention that PEFT "
            f"adapts, whose weight is the base's and not tied to another.{hint}"
        )
    return layout


def _require_shapes(vectors: TaskVectors, model: nn.Module) -> None:
    """Raise a `ValueError` where the model has a merged tensor in another shape."""
    own, named = model.state_dict(), model_names(model, list(vectors.headers))
    for name in vectors.names + vectors.averaged:
        found, expected = vectors.headers[name].shape, tuple(own[named[name]].shape) if name in named else None
        if expected not in (None, found):
            raise ValueError(f"{shown(name)} has shape {found}, and {expected} in the model, {type(model).__name__}.")


def _saved(made: Factors, path: Path, told_by: str) -> SavedAdapter:
    whole = tuple(name for name, home in made.whole.items() if home.way == WHOLE)
    dropped = {name: relative(norm**2, made.square) for name, norm in made.dropped.items()}
    error = relative(made.lost, made.square)
    return SavedAdapter(
        path=path,
        layers=tuple(made.layers),
        modules=tuple(sorted(made.modules)),
        whole=whole,
        dropped=dropped,
        excluded=made.plan.vectors.excluded,
        error=error,
        told_by=told_by,
    )


def _about_base(vectors: TaskVectors, model: nn.Module | None) -> dict[str, Any]:
    """Return what ``adapter_config.json`` says of the base."""
    base = vectors.checkpoints[0]
    name = type(model).__name__
    is_transformers = hasattr(model, "base_model_prefix")
    # Whisper's and Llava's classes are called so, too, and PEFT's for these tasks pass on what they do not take.
    is_of_text = getattr(model, "main_input_name", None) == "input_ids"
    fits = {"CAUSAL_LM": is_of_text, "SEQ_2_SEQ_LM": is_of_text and _is_encoder_decoder(model)}
    task = next((task for task, pattern in _TASKS.items() if fits[task] and re.fullmatch(pattern, name)), None)
    about = {"base_model_class": name, "parent_library": type(model).__module__} if is_transformers else None
    return {
        "base_model_name_or_path": _where(base, is_transformers),
        "task_type": task if is_transformers else None,
        "auto_mapping": about if task is None else None,
    }


def _is_encoder_decoder(model: nn.Module | None) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _where(base: Checkpoint, is_transformers: bool) -> str | None:
    """Return where the base is found: its name on the hub, or its folder or file."""
    if base.folder is None:
        return None
    for folder in base.folder.parents:
        if found := _ON_HUB.search(folder.name):
            return f"{found['owner']}/{found['name']}"
    return str(base.folder) if is_transformers or not base.inputs else str(base.inputs[0].path)

"""What a `MergeModule` holds, as a file or as a library's folder."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lwptv_lightning.checkpoints import Checkpoint, FunctionReader, ModelConfig, Provenance, TensorHeader, some_of
from lwptv_lightning.engine import Ranks
from lwptv_lightning.evaluation.heads_file import heads_path
from lwptv_lightning.evaluation.stored import described
from lwptv_lightning.libraries import DISTRIBUTED
from lwptv_lightning.merging import Beside, card_beside, plan_output, require_output
from lwptv_lightning.task_vectors import checkpoints_of, tied_in

if TYPE_CHECKING:
    from lwptv_lightning.evaluation.module import MergeModule


def save_module(
    module: MergeModule,
    path: str | Path,
    *,
    heads: bool,
    format: str | None,
    max_shard_size: int | str | None,
    overwrite: bool,
    keep_classifier: bool,
) -> Path:
    """Write the model that a module holds, merged; see `MergeModule.save_merged`."""
    require_output(path, format, overwrite=overwrite)
    if heads and not module.heads:
        raise ValueError(f"{path}: there are no heads to write, as the model itself gives the logits.")
    if module.installed is None:
        module.merge_()
    vectors, own = module.held_vectors, module.heads.instead_of
    if keep_classifier and own:
        raise ValueError(
            f"keep_classifier: the model's own classifier ({some_of(own, 2)[:-1]}) is not the base's, which has "
            "another shape; lwptv_lightning.save_merged(vectors, recipe, path, keep_classifier=True) writes that."
        )
    left_out = () if keep_classifier else tuple(dict.fromkeys((*module.contents.apart, *own)))
    state = module.contents.stored(module.model, left_out)
    origin = _origin(module, TensorHeader.of_all(state))
    is_file = Path(path).suffix == ".safetensors"
    if not is_file and format != DISTRIBUTED:  # which is loaded into a state dict, of every name
        for name in _further_names(module.model, state, origin):
            del state[name]
    output = plan_output(
        path,
        TensorHeader.of_all(state),
        origin,
        format=format,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        left_out=left_out,
        inputs=() if vectors is None else checkpoints_of(vectors),
    )
    if is_file and max_shard_size is None:
        output = replace(output, shard_size=None)
    card = card_beside(output, (origin,) if vectors is None else checkpoints_of(vectors), **_measured(module))
    if not is_file and Ranks.current().rank > 0:
        return Path(path)
    if heads and is_file:
        module.write_heads(heads_path(path))
    beside = [*([_write_heads(module)] if heads and not is_file else []), card]
    with output.writing(described(module), beside) as writer:
        for name, tensor in state.items():
            writer.write(name, tensor.detach().reshape(-1))
    return output.final(writer)


def _measured(module: MergeModule) -> dict[str, Any]:
    """Return the figures of the last evaluation for a card, if they are of what the module holds."""
    measured = module.measured
    if measured is None or not measured.still_of(module):
        return {}
    return {"figures": measured.figures, "controls": measured.controls, "metric": measured.metric}


def _write_heads(module: MergeModule) -> Beside:
    def write(folder: Path, _: Provenance) -> None:
        module.write_heads(heads_path(folder))

    return write


def _origin(module: MergeModule, headers: dict[str, TensorHeader]) -> Checkpoint:
    """Return the base, under the names of the module's model; that itself, where no base is at hand."""
    config = ModelConfig.of(module.model)
    if module.held_vectors is None:
        return Checkpoint("the model", headers, FunctionReader(lambda name: module.model.state_dict()[name])).of_model(
            config
        )
    base, *_ = checkpoints_of(module.held_vectors)
    return base if config is None else base.of_model(config)


def _further_names(model: nn.Module, names: Collection[str], origin: Checkpoint) -> list[str]:
    """Return which names of tied weights the base has not, which holds such a weight under another one."""
    further = []
    for group in tied_in(model, names):
        stored = [name for name in group if origin.stored_name(name) in origin.stored_headers]
        known = stored or [name for name in group if name in origin.headers]
        further += [name for name in group if known and name not in known]
    return further

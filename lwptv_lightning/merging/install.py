"""Put weights into a module, in place, also a wrapped or sharded one, and take them out again bit-exactly."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor, Replicate

from lwptv_lightning.checkpoints import TensorHeader, model_names, plain_tensors, sizes_told, some_of
from lwptv_lightning.engine import ALONE, Ranks
from lwptv_lightning.functional import drop_caches_, plain_module, plain_name, plain_state
from lwptv_lightning.merging.plan import MergePlan
from lwptv_lightning.merging.precision import in_dtype
from lwptv_lightning.merging.undo import Undo, keep_modes
from lwptv_lightning.registry import nearest, require_kind, shown
from lwptv_lightning.task_vectors import TaskVectors, tied_in


def install_(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors over the parameters and buffers of the same names.

    The parameters stay the objects they are, so optimisers and tied weights keep working. Everything is checked
    before the first tensor is copied; should anything be raised then, the module is as it was. What is overwritten is
    kept until all is copied. Ctrl-C waits until then.

    Args:
        module: What to write to. Tensors it has beyond those given stay as they are. Of a sharded one, by FSDP2 or
            tensor parallelism, every process calls this with the same whole tensors, and keeps its shards.
        tensors: Name in ``module.state_dict()``, without what `torch.compile` puts into names, to new value; converted
            to the parameter's device and dtype.

    Raises:
        ValueError: The module has no tensor of a name, or one of another shape, or of a dtype that a value overflows.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> install_(layer, {"bias": torch.tensor([2.0])})
        >>> layer.bias.item()
        2.0
    """
    with Undo() as undo:
        exchange_(module, tensors, undo)
        undo.keep()


def exchange_(module: nn.Module, tensors: Mapping[str, Tensor], undo: Undo) -> dict[str, Tensor]:
    """Do what `install_` does until ``undo`` has it stay or takes it back, and return what is overwritten."""
    require_kind("module", module, nn.Module, "a module")
    require_kind("tensors", tensors, Mapping, "a mapping of names to tensors")
    for name, tensor in tensors.items():
        require_kind(f"the tensor {name!r}", tensor, Tensor, "a tensor")
    plain_tensors({name: each for name, each in tensors.items() if not isinstance(each, DTensor)}, "tensors")
    _require_fit(module, {name: tensor.shape for name, tensor in tensors.items()})
    return _copy_each_(module, _all_of_range(module, tensors.items()), undo)


def install_plan_(module: nn.Module, plan: MergePlan, names: Iterable[str] | None = None) -> None:
    """Merge as planned and install some tensors, by default those that base and tasks have in common.

    Several processes each merge their share and then hand it on tensor by tensor, so that with a sharded module none
    holds the whole model. Whatever is raised, in merging or as in `install_`, the module is as it was: an error of
    one process on all of them, from the shards that each had.
    """
    with Undo() as undo:
        exchange_plan_(module, plan, names, undo)
        undo.keep()


def exchange_plan_(module: nn.Module, plan: MergePlan, names: Iterable[str] | None, undo: Undo) -> None:
    """Do what `install_plan_` does until ``undo`` has it stay or takes it back; signals wait from the first tensor."""
    headers = plan.vectors.headers
    wanted = set(plan.vectors.shared_names if names is None else names)
    _require_fit(module, {name: header.shape for name, header in headers.items() if name in wanted})
    # Several processes have all tensors made before the first one arrives. One alone makes them one by one, and an
    # error midway must not leave half of them installed.
    arriving = ((name, tensor) for name, tensor in plan.tensors() if name in wanted)
    ranks = plan.execution.ranks
    _copy_each_(module, _all_of_range(module, arriving) if ranks.size == 1 else arriving, undo, ranks)


def installable(module: nn.Module, vectors: TaskVectors) -> tuple[str, ...]:
    """Return the tensors of a base that a module takes: all but classifiers of another shape, which are its own."""
    own = {name: tensor.shape for name, tensor in plain_state(module).items()}
    fitting = (name for name, header in vectors.headers.items() if own.get(name) == header.shape)
    return tuple(dict.fromkeys((*vectors.shared_names, *fitting)))


def require_fit(model: nn.Module, vectors: TaskVectors, *, with_heads: bool = True) -> None:
    """Raise `ValueError` where merging would not set a tensor of a model.

    Where it is evaluated ``with_heads``, these take the place of the tasks' own classifiers.
    """
    require_kind("what model=... is or makes", model, nn.Module, "a module")
    require_kind("vectors", vectors, TaskVectors, "TaskVectors")
    own = {name: tuple(tensor.shape) for name, tensor in plain_state(model).items()}
    label = type(plain_module(model)).__name__
    absent = [name for name in vectors.shared_names if name not in own]
    if absent:
        raise ValueError(
            f"{label} has no tensor {some_of(absent)}{nearest(absent[0], own)} Expected the architecture that the "
            f"checkpoints are of; tensors that are not to be merged go into exclude=(...).{_naming_hint(model, absent)}"
        )
    for name in vectors.shared_names:
        if own[name] != vectors.headers[name].shape:
            told = sizes_told([name], vectors.headers, TensorHeader.of_all(plain_state(model)), plain_module(model))
            raise ValueError(
                f"{label}: {shown(name)} has shape {own[name]}, the base {vectors.headers[name].shape}.{told}"
            )
    classifiers = tuple(f"{path}." for path in vectors.classifiers) if with_heads else ()
    unset = [name for name in unset_by(model, vectors) if not name.startswith(classifiers)]
    if beyond := [name for name in unset if name not in vectors.headers]:
        raise ValueError(
            f"{label} has tensors that the base has not and that would stay random: {some_of(beyond)}"
            f"{_untied_hint(model, beyond)} Build it without them (timm: num_classes=0), or add them to the base "
            "checkpoint."
        )
    if unset:
        raise ValueError(
            f"{label} has tensors of other shapes than the base's, which are not merged and would stay random: "
            f"{some_of(unset)} {shown(unset[0])} has shape {own[unset[0]]}, the base "
            f"{vectors.headers[unset[0]].shape}. Build it in the base's shapes, or without them (timm: num_classes=0) "
            "and with heads={'<set>': module}."
        )


def _untied_hint(model: nn.Module, names: Iterable[str]) -> str:
    """Say that a transformers model ties some tensors, but not now, as after ``to_empty``."""
    for path, module in model.named_modules():
        prefix = f"{plain_name(path)}." if path else ""
        own = getattr(module, "_tied_weights_keys", None) or ()
        if callable(getattr(module, "tie_weights", None)) and any(f"{prefix}{name}" in names for name in own):
            return f" {type(module).__name__} ties them to others, but they are not tied now: call its tie_weights()."
    return ""


def _naming_hint(model: nn.Module, absent: Sequence[str]) -> str:
    """Say that tensors have the names of a transformers file, which the model has under others."""
    if not model_names(plain_module(model), absent):
        return ""
    return (
        " These are the names of transformers' files; TaskVectors.open(..., model=model) brings the checkpoints to the "
        "model's."
    )


def unset_by(model: nn.Module, vectors: TaskVectors) -> tuple[str, ...]:
    """Return the tensors of a model that are neither merged nor the base's."""
    own, put = plain_state(model), set(installable(model, vectors))
    put |= {name for group in tied_in(model, own) if put & set(group) for name in group}
    return tuple(name for name in own if name not in put)


def _require_fit(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    own = plain_state(module)
    absent = [name for name in shapes if name not in own]
    if absent:
        raise ValueError(
            f"{type(plain_module(module)).__name__} has no tensor {some_of(absent)}{nearest(absent[0], own)} "
            f"Expected a module of the architecture that the checkpoints are of.{_naming_hint(module, absent)}"
        )
    for name, shape in shapes.items():
        if own[name].shape != shape:
            raise ValueError(
                f"{type(plain_module(module)).__name__}: {shown(name)} has shape {tuple(own[name].shape)}, the "
                f"weights to install have {tuple(shape)}."
            )


def _copy_each_(
    module: nn.Module, tensors: Iterator[tuple[str, Tensor]], undo: Undo, ranks: Ranks = ALONE
) -> dict[str, Tensor]:
    """Copy tensors over a module's own, and return what these were."""
    own, before = plain_state(module), {}
    undo.hold()
    with ranks.sharing_errors(), torch.no_grad():
        try:
            for name, tensor in tensors:
                before[name] = _copy_of(own[name], tensor.device)
                undo.add(own[name].copy_, before[name])
                own[name].copy_(_placed_like(own[name], _of_range(name, tensor, own[name])))
        except Exception:
            if ranks.size > 1:
                deque(tensors, maxlen=0)  # the other processes wait for what is made here
            raise
    keep_modes(module, undo)
    drop_caches_(module)
    return before


def _all_of_range(module: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Check all tensors, and then give them one by one, each as the last to hold it."""
    own = plain_state(module)
    checked = deque((name, _of_range(name, tensor, own[name])) for name, tensor in tensors)
    return (checked.popleft() for _ in range(len(checked)))


def _copy_of(own: Tensor, device: torch.device | None = None) -> Tensor:
    """Return a copy of a module's tensor; in the memory of a device where it may leave its own."""
    # Tensors made in inference mode could not be used in training afterwards.
    with torch.inference_mode(False), torch.no_grad():
        leaves = device is not None and device != own.device and not isinstance(own, DTensor)
        return own.detach().to(device) if leaves else own.detach().clone()


def _of_range(name: str, tensor: Tensor, own: Tensor) -> Tensor:
    """Return a tensor, in a module's dtype where that has less range; a `ValueError` where it overflows that."""
    floating = tensor.is_floating_point() and own.is_floating_point()
    narrower = floating and torch.finfo(own.dtype).max < torch.finfo(tensor.dtype).max
    return in_dtype(name, tensor, own.dtype) if narrower and not isinstance(tensor, DTensor) else tensor


def _placed_like(own: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor as a sharded parameter takes it: each process has the whole, and cuts out its shard itself."""
    if not isinstance(own, DTensor) or isinstance(tensor, DTensor):
        return tensor
    everywhere = [Replicate()] * own.device_mesh.ndim
    return DTensor.from_local(tensor.to(own.device), own.device_mesh, everywhere, run_check=False)


def materialize_(module: nn.Module, device: torch.device | str) -> None:
    """Give memory to the parameters and buffers on the meta device, for `install_` to fill; also sharded ones.

    Raises:
        ValueError: A buffer on the meta device is in no state dict, so that nothing would fill it.

    Example:
        >>> with torch.device("meta"):
        ...     layer = nn.Linear(2, 2)
        >>> materialize_(layer, "cpu")
        >>> layer.weight.device
        device(type='cpu')
    """
    saved = module.state_dict()
    unsaved = [name for name, buffer in module.named_buffers() if buffer.is_meta and name not in saved]
    if unsaved:
        raise ValueError(
            f"{type(plain_module(module)).__name__} was built on the meta device, but computes buffers that no "
            f"checkpoint holds: {some_of(unsaved)} Build these, or the whole model, on a real device."
        )
    tied = _tied_places(module)
    # What `to_empty` does, but for the tensors alone that have no memory yet.
    module._apply(  # type: ignore[no-untyped-call]
        lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor
    )
    for (home, first), *others in tied:  # which would be tensors of their own from here on
        for owner, name in others:
            owner._parameters[name] = home._parameters[first]


def _tied_places(module: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Return, for each parameter on the meta device that stands in several places, the modules and names of these."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.is_meta:
                places.setdefault(id(parameter), []).append((owner, name))
    return [group for group in places.values() if len(group) > 1]


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state dict with whole tensors, which every process must ask for where the module is sharded."""
    state = plain_state(module)
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in state.items()}


def snapshot(module: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of some of a module's tensors, from which `install_` restores it bit-exactly."""
    own = plain_state(module)
    return {name: _copy_of(own[name]) for name in names if name in own}


def gather_state(root: nn.Module, path: str = "", *, on_rank_zero: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a submodule in full, under the names they have without any wrapper.

    Wrappers are those of DDP, FSDP and ``torch.compile``. With several processes all of them must call this.

    Args:
        root: The outermost module as the trainer runs it, ``trainer.model``: shards can be gathered from there only.
        path: Path of the submodule, such as ``"model.encoder"``; empty for the root itself.
        on_rank_zero: Gather on the CPU of the first process; the others get an empty dict.

    Returns:
        Name to tensor; empty where there is no such submodule. Where nothing is sharded these may be the weights
        themselves: do not write to them.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
        >>> gather_state(torch.compile(model), "0").keys()
        dict_keys(['weight', 'bias'])
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=on_rank_zero)
    state = get_model_state_dict(root, options=options)
    prefix = f"{plain_name(path)}." if path else ""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

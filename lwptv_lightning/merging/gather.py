"""Read whole weights out of a module that a training strategy may have wrapped or sharded."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict


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
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
        >>> gather_state(torch.compile(model), "0").keys()
        dict_keys(['weight', 'bias'])
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=on_rank_zero)
    state = get_model_state_dict(root, options=options)
    prefix = f"{path}." if path else ""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

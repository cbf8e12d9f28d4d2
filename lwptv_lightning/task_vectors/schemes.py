"""Which library quantized a weight, as the names beside it and the configuration tell, and how it is dequantized."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lwptv_lightning.checkpoints import Checkpoint, TensorHeader, quantization_config
from lwptv_lightning.registry import printable_name

_HOME = re.compile(r"(weight\.)?(_data\.)*[^.]*$")
"""What a weight is called within its module."""
_LOADED_WHOLE = "from_pretrained(..., quantization_config={}(dequantize=True)) of transformers"


@dataclass(frozen=True)
class _Scheme:
    """How a library quantizes.

    Attributes:
        label: The library's name and what it makes.
        beside: A pattern that the whole end of a name matches, after what the weight's name begins with.
        way: How such a model is dequantized, in words that follow "by".
        fits: What more must hold, of the names' ends and their headers.
    """

    label: str
    beside: str
    way: str = ""
    fits: Callable[[Mapping[str, TensorHeader]], bool] = lambda near: True


def _is_packed_by_columns(near: Mapping[str, TensorHeader]) -> bool:
    """Whether 8 columns of a weight are packed into one, where GPTQ packs 8 rows."""
    weight, zeros = near.get("qweight"), near.get("qzeros")
    return weight is not None and zeros is not None and weight.shape[-1:] == zeros.shape[-1:]


_SCHEMES = (
    _Scheme("bitsandbytes, 4 bits", r"(\w+\.)?quant_state\.bitsandbytes__\w+", "model.dequantize() of transformers"),
    _Scheme("bitsandbytes, 4 bits", r"(\w+\.)?(absmax|quant_map)", "model.dequantize() of transformers"),
    _Scheme("bitsandbytes, 8 bits", r"SCB|weight_format", "model.dequantize() of transformers"),
    _Scheme("AWQ", "qweight", fits=_is_packed_by_columns),
    _Scheme("GPTQ", "qweight|g_idx"),
    _Scheme("compressed-tensors", "weight_packed", _LOADED_WHOLE.format("CompressedTensorsConfig")),
    _Scheme("HQQ", "W_q", "its HQQLinear.dequantize()"),
    _Scheme("torchao", r"_\w+_qdata", "its tensors' dequantize()"),
    _Scheme("quanto", r"\w+\._data(\._data)?", "its tensors' dequantize()"),
    _Scheme("AQLM", "codebooks"),
    _Scheme("VPTQ", r"(res_)?centroids(\.\w+)?"),
    _Scheme("MXFP4", r"\w+_blocks", _LOADED_WHOLE.format("Mxfp4Config")),
    _Scheme("NVFP4, of ModelOpt", "weight_scale_2|weight_global_scale"),
    _Scheme("EETQ", "weight_scales"),
    _Scheme("TransformerEngine, with its scale in a pickle", "_extra_state"),
)


def scheme_of(weight: str, checkpoint: Checkpoint) -> tuple[str, str]:
    """Return who quantized a weight, empty where nothing tells, and by what it is dequantized, likewise.

    Example:
        >>> import torch
        >>> from lwptv_lightning import open_checkpoint
        >>> scheme_of("fc.W_q", open_checkpoint({"fc.W_q": torch.ones(2, 2).byte(), "fc.scale": torch.ones(2)}))
        ('HQQ', 'its HQQLinear.dequantize()')
    """
    home = _HOME.sub("", weight)
    near = {name.removeprefix(home): header for name, header in checkpoint.headers.items() if name.startswith(home)}
    for scheme in _SCHEMES:
        if scheme.fits(near) and _any_matches(scheme.beside, near):
            return scheme.label, scheme.way
    method = quantization_config(checkpoint).get("quant_method")
    return (f"{printable_name(method)}, as the configuration beside it says" if method else ""), ""


def _any_matches(pattern: str, names: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)

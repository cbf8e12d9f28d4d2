"""`Loading`: which library loads a written model, and by which lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwptv_lightning.files import InputFile
from lwptv_lightning.registry import parse_json

_TIMM = """import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:OWNER/MODEL"
"""
_TIMM_HEAD = """
# With the classifier of a set, whose tensors are named SET/NAME in the file of heads:
from safetensors.torch import load_file

heads = load_file("FOLDER/heads.safetensors")
model.reset_classifier(CLASSES)
model.load_state_dict({n[len("SET/"):]: t for n, t in heads.items() if n.startswith("SET/")}, strict=False)
"""
_TRANSFORMERS = """from transformers import {name}

model = {name}.from_pretrained("FOLDER")  # or "OWNER/MODEL"
"""
_OPEN_CLIP = """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")  # or "hf-hub:OWNER/MODEL"
"""
_DISTRIBUTED = """import torch.distributed.checkpoint as dcp

state = model.state_dict()  # sharded or not
dcp.load(state, checkpoint_id="FOLDER")
"""
_ADAPTER = """from peft import PeftModel

model = PeftModel.from_pretrained(base, "FOLDER")  # or "OWNER/MODEL"
"""
_FILE = """from safetensors.torch import load_file

model.load_state_dict(load_file("{name}"))
"""
_SHARDS = """from lwptv_lightning import open_checkpoint

checkpoint = open_checkpoint("{name}")
model.load_state_dict({{name: checkpoint.read(name) for name in checkpoint.names}})
"""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a written model is loaded.

    Attributes:
        library: What loads it, as the hub calls it; None where that is any that reads safetensors.
        code: The lines that do.

    Example:
        >>> Loading().library is None, "load_file" in Loading().markdown
        (True, True)
    """

    library: str | None = None
    code: str = _FILE.format(name="merged.safetensors")

    @classmethod
    def of(cls, path: str | Path) -> Loading:
        """Tell by the configuration beside a written model which library it is for.

        Args:
            path: Its folder, its file, or the index of its shards.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        if (folder / "open_clip_config.json").is_file():
            return cls(library="open_clip", code=_OPEN_CLIP)
        if (folder / "adapter_config.json").is_file():
            return cls(library="peft", code=_ADAPTER)
        if (folder / ".metadata").is_file() and path.is_dir():
            return cls(code=_DISTRIBUTED)
        about = _configuration(folder)
        if isinstance(about.get("architecture"), str) and ("pretrained_cfg" in about or "num_classes" in about):
            return cls(library="timm", code=_TIMM + (_TIMM_HEAD if (folder / "heads.safetensors").is_file() else ""))
        if "model_type" in about or "architectures" in about:
            names = about.get("architectures")
            given = names[0] if isinstance(names, list) and len(names) == 1 else None
            is_class = isinstance(given, str) and given.isidentifier() and given.isascii()
            name = given if is_class else "AutoModel"
            return cls(library="transformers", code=_TRANSFORMERS.format(name=name))
        name = path.name if path.is_file() else "merged.safetensors"
        return cls(code=(_SHARDS if name.endswith(".json") else _FILE).format(name=_plain(name)))

    @property
    def markdown(self) -> str:
        """The lines as a block of code."""
        return f"```python\n{self.code.rstrip()}\n```"


def _configuration(folder: Path) -> dict[str, Any]:
    try:
        about = parse_json(InputFile.at(folder / "config.json").text(), "config.json")
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _plain(name: str) -> str:
    """Return a file's name as far as it can stand in a line of code as it is."""
    return name if name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum() else "FILE"

"""What timm, transformers, open_clip and torch expect of a model's folder, so that each loads what is written."""

from lwptv_lightning.libraries.beside import PROCESSING, belongs_to_a_model
from lwptv_lightning.libraries.distributed_folder import write_distributed
from lwptv_lightning.libraries.folder import FolderError, ModelFolder
from lwptv_lightning.libraries.formats import DISTRIBUTED, FORMATS, PLAIN, plan_folder, require_format

__all__ = ["FORMATS", "FolderError", "ModelFolder", "plan_folder"]

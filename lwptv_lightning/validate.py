"""Where functions for configuration files were once; they forward to their rooms."""

from lwptv_lightning.evaluation import files_module, image_folders, timm_module
from lwptv_lightning.zoo import zoo_module, zoo_suite

__all__ = ["files_module", "image_folders", "timm_module", "zoo_module", "zoo_suite"]

"""Files as a whole or not at all, whatever fails and whenever a process is killed; no torch here."""

from lwptv_lightning.files.atomic import Stage, is_there, naming, remove_stale, require_replaceable, sync, write_whole
from lwptv_lightning.files.folders import require_free_folder, whole_folder
from lwptv_lightning.files.inputs import InputFile, beside
from lwptv_lightning.files.locks import alone

__all__ = ["InputFile", "Stage", "write_whole"]

"""One model's tensors, read on demand, whatever wrote them; and files written so that none is left half done."""

from lwptv_lightning.checkpoints.adapter_forms import is_adapter, require_readable_form
from lwptv_lightning.checkpoints.adapter_layout import (
    FACTORS,
    MODULE,
    ROOT,
    WHOLE,
    AdapterLayout,
    Home,
    factor_matrix,
    factor_tensors,
)
from lwptv_lightning.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    FunctionReader,
    HeaderComparison,
    TensorHeader,
    compare_headers,
    holding,
    some_of,
    write_difference,
)
from lwptv_lightning.checkpoints.conversion import convert
from lwptv_lightning.checkpoints.difference import add_difference, is_task_vector
from lwptv_lightning.checkpoints.distributed import PROVENANCE
from lwptv_lightning.checkpoints.hashing import UNKNOWN, fingerprint, fingerprints, tensor_fingerprints
from lwptv_lightning.checkpoints.hub import fetch, fetch_beside, hub_name
from lwptv_lightning.checkpoints.library_names import model_names, named_as
from lwptv_lightning.checkpoints.lora import expand_adapter
from lwptv_lightning.checkpoints.model_config import ModelConfig
from lwptv_lightning.checkpoints.names import (
    align_prefix,
    is_quantized,
    match_names,
    quantization_config,
    stated_head,
    without_wrappers,
)
from lwptv_lightning.checkpoints.open import CheckpointSource, open_checkpoint
from lwptv_lightning.checkpoints.patterns import found_groups
from lwptv_lightning.checkpoints.payload import (
    CHECKSUM_KEYS,
    FILES_KEY,
    PAYLOAD_KEY,
    folder_problems,
    payload_problem,
    with_checksums_of,
)
from lwptv_lightning.checkpoints.plain import plain_tensors
from lwptv_lightning.checkpoints.positions import (
    grids_in,
    grids_told,
    only_grid,
    reference_of,
    resized,
    sizes_told,
)
from lwptv_lightning.checkpoints.provenance import Provenance
from lwptv_lightning.checkpoints.safetensors import SAFETENSORS_DTYPES
from lwptv_lightning.checkpoints.safetensors_writer import SafetensorsWriter, write_safetensors
from lwptv_lightning.checkpoints.shards import index_of
from lwptv_lightning.checkpoints.skeleton import skeleton_of, skeleton_problem
from lwptv_lightning.checkpoints.spool import Spool
from lwptv_lightning.checkpoints.storable import (
    require_place,
    require_safetensors_path,
    require_storable,
    require_writable,
)
from lwptv_lightning.checkpoints.torch_file import stated_texts
from lwptv_lightning.checkpoints.training import TAKEN

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointSource",
    "Provenance",
    "TensorHeader",
    "fingerprint",
    "open_checkpoint",
]

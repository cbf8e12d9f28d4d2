"""How stacks are read: in blocks, on a device, by one process or several."""

from lwptv_lightning.engine.blocks import Block, block_bytes, keep_freed_memory, read_blocks, spans, sum_by_tensor
from lwptv_lightning.engine.order_statistics import Transform, count_elements, kth_smallest_magnitude, order_statistics
from lwptv_lightning.engine.ranks import ALONE, RankFailedError, Ranks, divide
from lwptv_lightning.engine.share import WHOLE, Share
from lwptv_lightning.engine.stream import PrunedTaskVectors
from lwptv_lightning.engine.transfer import PinnedTransfer

__all__ = [
    "ALONE",
    "Block",
    "PinnedTransfer",
    "PrunedTaskVectors",
    "RankFailedError",
    "Ranks",
    "Share",
    "Transform",
    "WHOLE",
    "block_bytes",
    "count_elements",
    "divide",
    "keep_freed_memory",
    "kth_smallest_magnitude",
    "order_statistics",
    "read_blocks",
    "spans",
    "sum_by_tensor",
]

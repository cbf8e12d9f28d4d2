"""How stacks are read: in blocks, on a device, by one process or several."""

from lwptv_lightning.engine.blocks import Block, keep_freed_memory, spans, sum_by_tensor
from lwptv_lightning.engine.execution import CPU, Execution
from lwptv_lightning.engine.fused import (
    FUSED_BASES,
    Limits,
    UnfusableError,
    begin_limits,
    merge_fused,
    statistics_fused,
)
from lwptv_lightning.engine.memo import Memo, Once, anew, of_each
from lwptv_lightning.engine.order_statistics import Transform, kth_smallest_magnitude, order_statistics
from lwptv_lightning.engine.program import START, Program, merging_program
from lwptv_lightning.engine.ranks import ALONE, RankFailedError, Ranks, divide
from lwptv_lightning.engine.stream import DataStatistics, Stream
from lwptv_lightning.engine.threads import Threads

__all__ = ["ALONE", "Execution", "RankFailedError", "Ranks", "Stream", "divide"]

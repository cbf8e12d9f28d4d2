"""Pure functions of tensors; nothing of the library is imported here."""

from lwptv_lightning.functional.calls import Replaceable, call_with, drop_caches_
from lwptv_lightning.functional.common_space import LEAST_SINGULAR_VALUE, common_basis
from lwptv_lightning.functional.compiled import (
    keep_plain_names_,
    plain_module,
    plain_name,
    plain_state,
    uncompile_,
)
from lwptv_lightning.functional.devices import device_of, require_usable
from lwptv_lightning.functional.draws import draw_key, draw_limit, random_keep, random_uniform
from lwptv_lightning.functional.formula import Formula, noted
from lwptv_lightning.functional.least_squares import own_row_terms, row_terms
from lwptv_lightning.functional.low_rank import factored_error, low_rank_factors
from lwptv_lightning.functional.masks import compare, count_true, magnitude_probabilities, positions, select, tall_masks
from lwptv_lightning.functional.matrices import (
    NEGLIGIBLE,
    Triplets,
    decompose,
    directions,
    inverse_root,
    inverses,
    leading_triplets,
    polar_factor,
)
from lwptv_lightning.functional.ranked import kth_smallest, ranked_values, sample_margins
from lwptv_lightning.functional.signs import agreeing_parts, combine_agreeing, elect_signs
from lwptv_lightning.functional.sums import as_rows, only_row_of_each, per_row, sum_dtype, sum_tasks, weighted_sum
from lwptv_lightning.functional.task_bases import TaskBases, task_bases, with_plain_signs
from lwptv_lightning.functional.trims import (
    consensus_mask,
    drop_at_random_,
    keep_consensus,
    keep_largest_,
    keep_middle_,
    trim_,
)

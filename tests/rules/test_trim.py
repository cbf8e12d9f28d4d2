import pytest
import torch
from _helpers.golden import golden_vectors

from lwptv_lightning.engine import Stream
from lwptv_lightning.functional import as_rows, trim_
from lwptv_lightning.rules._trim import smallest_kept, trim_thresholds


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.999, 1.0])
def test_a_trim_keeps_one_more_than_the_fraction(density):
    vectors = Stream.of(golden_vectors("pair", [1]))
    count = vectors.elements
    kept = trim_(every_row(vectors), trim_thresholds(vectors, density)).count_nonzero()
    assert kept == min(int(count * density) + 1, count)
    assert smallest_kept(count, density) == max(count - int(count * density), 1)


def every_row(vectors):
    return torch.cat([as_rows(vectors.stack(name)) for name in vectors.names], dim=1)

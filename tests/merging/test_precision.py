import math
import re

import pytest
import torch

from lwptv_lightning.merging import in_dtype

NARROW = [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_fits_is_cast_and_what_does_not_is_named(dtype, sign):
    limit = torch.finfo(dtype).max
    values = torch.tensor([0.0, sign * limit, 1.0], dtype=torch.float64)
    assert torch.equal(in_dtype("w", values, dtype).double(), values)
    beyond = re.escape(f"beyond {limit:g}, the largest of {dtype}")
    with pytest.raises(ValueError, match=f"'w' would overflow.* {beyond}"):
        in_dtype("w", values * 1.5, dtype)


def test_what_is_rounded_to_the_largest_fits():
    assert in_dtype("w", torch.tensor([65510.0]), torch.float16).item() == 65504


@pytest.mark.parametrize(("value", "words"), [(math.nan, "holds NaN"), (math.inf, "would overflow")])
def test_what_is_broken_already_is_named(value, words):
    with pytest.raises(ValueError, match=f"'w' {words}"):
        in_dtype("w", torch.tensor([1.0, value]), torch.float32)


def test_empty_and_integer_tensors_pass():
    assert in_dtype("w", torch.zeros(0), torch.float16).dtype == torch.float16
    assert in_dtype("w", torch.tensor([1 << 40]), torch.int64).tolist() == [1 << 40]

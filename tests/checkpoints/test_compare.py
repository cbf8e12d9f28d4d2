import torch

from lwptv_lightning.checkpoints import HeaderComparison, TensorHeader, compare_headers

FLOAT, HALF, INTEGER = (TensorHeader((2,), dtype) for dtype in (torch.float32, torch.float16, torch.int64))
LONG = TensorHeader((3,), torch.int64)
BASE = {"same": FLOAT, "half": FLOAT, "gone": FLOAT, "long": FLOAT, "kind": FLOAT}
OTHER = {"more": FLOAT, "kind": INTEGER, "long": LONG, "half": HALF, "same": FLOAT}


def test_each_name_stands_under_one_heading_in_its_checkpoints_order():
    assert compare_headers(BASE, OTHER) == HeaderComparison(
        ("same", "half"), ("gone",), ("more",), ("long",), ("kind",)
    )


def test_globs_leave_names_aside_on_both_sides():
    found = compare_headers(BASE, OTHER, ["*o*e", "long", "k*"])  # "gone" and "more"
    assert found == HeaderComparison(("same", "half"), (), (), (), ())

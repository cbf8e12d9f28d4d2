import pytest

from lwptv_lightning.registry import parse_bytes


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1), (512_000_000, 512_000_000), ("512MB", 512_000_000), ("1.5 GiB", 3 << 29), ("2kb", 2000), ("7", 7)],
)
def test_sizes(value, expected):
    assert parse_bytes("max_memory", value) == expected


@pytest.mark.parametrize("value", ["", "MB", "-1", 0, "0GB", "1XB", 1.5j, True, None])
def test_what_is_no_size_is_refused(value):
    with pytest.raises(ValueError, match="max_memory must be a number of bytes above 0 such as 512MB or 2GiB, not"):
        parse_bytes("max_memory", value)

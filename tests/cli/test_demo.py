import pytest

from lwptv_lightning.cli import main


@pytest.mark.parametrize("option", ["--devices", "--size"])
def test_counts_below_one_are_refused_before_anything_runs(option, tmp_path):
    with pytest.raises(SystemExit, match=f"^lwptv demo: {option} must be at least 1, not 0"):
        main(["demo", option, "0", "--out", str(tmp_path / "demo")])
    assert not (tmp_path / "demo").exists()

"""``lwptv check``; what it finds is tested with the inspection."""

import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning.cli import main


def test_exit_code_says_whether_all_is_well(tmp_path, capsys):
    save_file({"w": torch.ones(2)}, tmp_path / "base.safetensors")
    save_file({"w": torch.tensor([1.0, 1.1])}, tmp_path / "tuned.safetensors")
    save_file({"w": torch.ones(3)}, tmp_path / "other.safetensors")
    base, good, bad = (str(tmp_path / f"{name}.safetensors") for name in ("base", "tuned", "other"))
    main(["check", base, f"a={good}"])
    with pytest.raises(SystemExit) as stop:
        main(["check", base, f"a={good}", f"b={bad}"])
    assert stop.value.code == 1
    assert "%" in capsys.readouterr().out
    main(["check", base, f"a={good}", "--headers-only"])
    assert "matched" in (shown := capsys.readouterr().out)
    assert "%" not in shown

"""``lwptv diff``; what it shows is tested with the inspection."""

import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning.cli import main


@pytest.fixture
def files(tmp_path):
    save_file({"fc.weight": torch.zeros(2), "head.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    save_file({"fc.weight": torch.ones(2), "head.weight": torch.zeros(2)}, tmp_path / "b.safetensors")
    return str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")


def test_layers_that_differ_are_shown(files, capsys):
    main(["diff", *files])
    assert "fc" in capsys.readouterr().out
    main(["diff", *files, "--granularity", "tensor"])
    assert "fc.weight" in capsys.readouterr().out


def test_an_unknown_granularity_is_refused(files, capsys):
    with pytest.raises(SystemExit):
        main(["diff", *files, "--granularity", "modul"])
    assert "'modul'" in capsys.readouterr().err

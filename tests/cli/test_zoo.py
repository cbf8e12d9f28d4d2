import pytest

from lwptv_lightning import zoo
from lwptv_lightning.cli import main


def test_build_gets_the_folder_and_the_seed(tmp_path, monkeypatch, capsys):
    built = []
    monkeypatch.setattr(zoo, "build", lambda out, **given: built.append((out, *given.values())))
    main(["zoo", "build", "--out", str(tmp_path), "--seed", "3", "--steps", "2"])
    assert built == [(tmp_path, 3, 2, 250)]
    assert str(tmp_path) in capsys.readouterr().out


def test_an_action_is_needed():
    with pytest.raises(SystemExit):
        main(["zoo"])

import torch

from lwptv_lightning import __version__
from lwptv_lightning.report import library_versions, versions


def test_versions_are_those_that_run():
    found = library_versions()
    assert found["lwptv_lightning"] == __version__
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_what_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(versions, "_LIBRARIES", ("torch", "no_such_library"))
    assert list(library_versions()) == ["lwptv_lightning", "torch", "python"]

import os
import signal
import subprocess
import sys
import textwrap
from functools import partial

import pytest

from lwptv_lightning.files import folders, whole_folder
from lwptv_lightning.files.folders import require_free_folder


def is_model(entry):
    return entry.suffix == ".json"


def fill(folder, text):
    folder.mkdir(exist_ok=True)
    for name in ("a.json", "b.json"):
        (folder / name).write_text(text)


def write(folder, text, meanwhile=lambda: None, **options):
    with whole_folder(folder, **options) as made:
        fill(made, text)
        meanwhile()


def fails(error):
    raise error


def texts(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.fixture(params=["exchanged", "in two steps"])
def ways(request, monkeypatch):
    if request.param == "in two steps":
        monkeypatch.setattr(folders, "_exchanged", lambda made, target: False)


def test_it_appears_when_the_block_is_left_and_nothing_else_does(tmp_path):
    with whole_folder(tmp_path / "deep" / "out", overwrite=False) as made:
        fill(made, "new")
        (made / "sub").mkdir()
        (made.parent / "scratch").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert sorted(os.listdir(tmp_path / "deep" / "out")) == ["a.json", "b.json", "sub"]
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_a_failure_leaves_what_was_there(tmp_path):
    out = tmp_path / "out"
    fill(out, "old")
    for error in (OSError("disk"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write(out, "new", partial(fails, error), overwrite=True, belongs=is_model)
    assert set(texts(out).values()) == {"old"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_is_replaced_as_a_whole(ways, tmp_path):
    out = tmp_path / "out"
    fill(out, "old")
    (out / "c.json").write_text("of the old one alone")
    out.chmod(0o750)
    with whole_folder(out, overwrite=True, belongs=is_model) as made:
        fill(made, "new")
    assert texts(out) == {"a.json": "new", "b.json": "new"}
    assert out.stat().st_mode & 0o777 == 0o750
    assert os.listdir(tmp_path) == ["out"]


def test_a_second_step_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_exchanged", lambda made, target: False)
    out, real = tmp_path / "out", os.rename
    fill(out, "old")

    def fail(source, target):
        if str(source).endswith("made"):
            raise OSError(5, "input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with (
        pytest.raises(OSError, match="input/output error"),
        whole_folder(out, overwrite=True, belongs=is_model) as made,
    ):
        fill(made, "new")
    assert set(texts(out).values()) == {"old"}


def test_without_overwrite_the_first_of_two_writers_stays(tmp_path):
    out = tmp_path / "out"
    soon = partial(write, out, "soon", overwrite=False)
    with pytest.raises(FileExistsError, match="out exists"):
        write(out, "late", soon, overwrite=False)
    assert set(texts(out).values()) == {"soon"}
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_is_nobodys(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out", overwrite=False) as made:
        fill(made, "new")
    assert set(texts(tmp_path / "out").values()) == {"new"}


def test_a_link_to_a_folder_is_replaced_and_not_followed(ways, tmp_path):
    fill(tmp_path / "elsewhere", "old")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with whole_folder(tmp_path / "out", overwrite=True, belongs=is_model) as made:
        fill(made, "new")
    assert not (tmp_path / "out").is_symlink()
    assert set(texts(tmp_path / "out").values()) == {"new"}
    assert set(texts(tmp_path / "elsewhere").values()) == {"old"}


def test_what_is_no_models_is_never_lost(tmp_path, monkeypatch):
    fill(tmp_path / "out", "old")
    (tmp_path / "out" / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match=r"holds 'thesis.txt', which is no part of a model and would be lost"):
        require_free_folder(tmp_path / "out", overwrite=True, belongs=is_model)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="file is no folder"):
        require_free_folder(tmp_path / "file", overwrite=True, belongs=is_model)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for name in (tmp_path / "empty", tmp_path, tmp_path / "empty" / ".."):
        with pytest.raises(FileExistsError, match="the folder that this process is in"):
            require_free_folder(name, overwrite=True, belongs=is_model)
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(OSError, match="root of a file system"):
        require_free_folder(tmp_path / "out", overwrite=True, belongs=is_model)


def test_a_killed_writer_leaves_the_old_folder_and_the_next_one_cleans_up(tmp_path):
    out = tmp_path / "out"
    fill(out, "old")
    program = f"""
        import os, signal
        from lwptv_lightning.files import whole_folder
        with whole_folder({str(out)!r}, overwrite=True, belongs=lambda entry: True) as made:
            (made / "a.json").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert set(texts(out).values()) == {"old"}
    assert len(os.listdir(tmp_path)) == 2
    with whole_folder(out, overwrite=True, belongs=is_model) as made:
        fill(made, "new")
    assert set(texts(out).values()) == {"new"}
    assert os.listdir(tmp_path) == ["out"]

import errno
import os
import shutil
import signal
import stat
import threading
import time

import pytest
from _helpers.forks import forked, status_of

from lwptv_lightning.files import Stage, locks, require_replaceable, write_whole


def present(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["text ü", b"bytes"])
def test_what_is_written_stands_there_alone(content, tmp_path):
    path = write_whole(tmp_path / "new" / "a.txt", content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert present(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_whatever_is_thrown_the_old_file_stays(error, tmp_path):
    write_whole(tmp_path / "a.txt", "old")

    def fail():
        with Stage(tmp_path / "a.txt") as stage:
            (stage.folder / "a").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert present(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_new_files(umask, tmp_path):
    before = os.umask(umask)
    try:
        path = write_whole(tmp_path / "a.txt", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_replaced_file_keeps_its_permissions(mode, tmp_path):
    path = write_whole(tmp_path / "a.txt", "old")
    path.chmod(mode)
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_file_system_without_permissions_needs_none(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "chmod", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert write_whole(path, "new").read_text() == "new"


def test_a_group_that_cannot_be_kept_gives_nobody_else_its_rights(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "a.txt", "old")
    path.chmod(0o664)
    monkeypatch.setattr(os, "chown", lambda *_: (_ for _ in ()).throw(PermissionError()))
    other = os.stat_result((*path.stat()[:5], path.stat().st_gid + 1, *path.stat()[6:]))
    monkeypatch.setattr(type(path), "lstat", lambda _: other)
    write_whole(path, "new")
    monkeypatch.undo()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_link_is_replaced_and_not_followed(tmp_path):
    precious = write_whole(tmp_path / "precious", "precious")
    (tmp_path / "a.txt").symlink_to(precious)
    assert not write_whole(tmp_path / "a.txt", "new").is_symlink()
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)])
def test_what_is_no_file_is_not_replaced(make, tmp_path):
    make(tmp_path / "a.txt")
    with pytest.raises(OSError, match=r"a\.txt.* is no regular file"):
        write_whole(tmp_path / "a.txt", "new")
    assert present(tmp_path) == ["a.txt"]
    assert not (tmp_path / "a.txt").is_file()


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("there", ["file", "link to nothing"])
def test_nothing_is_replaced_unasked(there, links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    path = tmp_path / "a.txt"
    assert write_whole(path, "first", overwrite=False).read_text() == "first"
    if there != "file":
        path.unlink()
        path.symlink_to("nowhere")
    with pytest.raises(FileExistsError, match=r"a\.txt exists"):
        write_whole(path, "second", overwrite=False)
    assert path.is_symlink() or path.read_text() == "first"
    assert present(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_one_of_many_writers_succeeds_unasked(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    outcomes = []

    def write(number):
        try:
            write_whole(tmp_path / "a.txt", f"{number}" * 9, overwrite=False)
            outcomes.append(number)
        except FileExistsError:
            outcomes.append(None)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (winner,) = [number for number in outcomes if number is not None]
    assert len(outcomes) == 8
    assert (tmp_path / "a.txt").read_text() == f"{winner}" * 9
    assert present(tmp_path) == ["a.txt"]


def killed_while_writing(path):
    """Fork a process that is killed in the middle of writing; return the names that are left."""
    child = os.fork()
    if child == 0:
        with Stage(path) as stage:
            (stage.folder / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return present(path.parent)


def test_the_next_one_removes_what_a_killed_one_left(tmp_path):
    (left,) = killed_while_writing(tmp_path / "a.txt")
    assert left.startswith(".a.txt.")
    write_whole(tmp_path / "b.txt", "another target's")
    assert left in present(tmp_path)
    write_whole(tmp_path / "a.txt", "whole")
    assert present(tmp_path) == ["a.txt", "b.txt"]


def test_a_living_ones_is_left_alone(tmp_path):
    with Stage(tmp_path / "a.txt") as stage:
        (stage.folder / "a").write_text("slow")
        write_whole(tmp_path / "a.txt", "fast")
        stage.install("a", stage.target)
    assert (tmp_path / "a.txt").read_text() == "slow"


def test_without_locks_age_tells(tmp_path, monkeypatch):
    (left,) = killed_while_writing(tmp_path / "a.txt")
    monkeypatch.setattr(locks, "fcntl", None)
    write_whole(tmp_path / "a.txt", "whole")
    assert present(tmp_path) == [left, "a.txt"]
    long_ago = time.time() - 8 * 24 * 3600
    os.utime(tmp_path / left / "lock", (long_ago, long_ago))
    write_whole(tmp_path / "a.txt", "whole")
    assert present(tmp_path) == ["a.txt"]


def test_a_planted_link_is_not_taken_for_a_stage(tmp_path):
    precious = write_whole(tmp_path / "folder" / "lock", "precious")
    (tmp_path / f".a.txt.{'0' * 16}.tmp").symlink_to(precious.parent)
    (tmp_path / f".a.txt.{'1' * 16}.tmp").mkdir()
    (tmp_path / f".a.txt.{'1' * 16}.tmp" / "lock").symlink_to(precious)
    write_whole(tmp_path / "a.txt", "whole")
    assert precious.read_text() == "precious"


def test_long_names_can_be_written(tmp_path):
    path = write_whole(tmp_path / ("ü" * 120 + "a.txt"), "long", overwrite=False)
    assert present(tmp_path) == [path.name]


@pytest.mark.parametrize("place", ["file/a.txt", "/proc/a.txt"])
def test_a_place_that_cannot_be_written_is_named(place, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"a\.txt: nothing can be written to "):
        write_whole(tmp_path / place, "new")


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, monkeypatch):
    write_whole(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=r"a\.txt: could not be written \(No space left") as caught:
        write_whole(tmp_path / "a.txt", "new")
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "a.txt").read_text() == "old"
    assert present(tmp_path) == ["a.txt"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_s_file_in_a_folder_for_all_is_refused_before_the_work(tmp_path):
    path = write_whole(tmp_path / "a.txt", "root's")
    tmp_path.chmod(0o1777)

    def write():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        with pytest.raises(PermissionError, match=r"a\.txt is another user's"):
            require_replaceable(path)
        require_replaceable(tmp_path / "b.txt")

    before = [folder for folder in tmp_path.parents if not folder.stat().st_mode & 0o001]
    for folder in before:
        folder.chmod(folder.stat().st_mode | 0o001)
    try:
        assert status_of(forked(write)) == 0
    finally:
        for folder in before:
            folder.chmod(folder.stat().st_mode & ~0o001)


def test_a_folder_that_vanishes_is_named(tmp_path):
    def write():
        with Stage(tmp_path / "new" / "a.txt") as stage:
            (stage.folder / "a").write_text("whole")
            shutil.rmtree(tmp_path / "new")
            stage.install("a", stage.target)

    with pytest.raises(FileNotFoundError, match=r"a\.txt: could not be written"):
        write()
    assert not list(tmp_path.iterdir())

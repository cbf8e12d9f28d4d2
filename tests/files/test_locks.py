import errno
import os
import threading
import time

import pytest

from lwptv_lightning.files import alone, locks


def test_one_at_a_time_and_nothing_is_left(tmp_path):
    inside, most = [], []

    def enter():
        with alone(tmp_path / "a.txt"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 8
    assert not list(tmp_path.iterdir())


def test_a_lock_that_another_process_holds_on_and_on_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.05)
    with alone(tmp_path / "a.txt"), pytest.raises(TimeoutError, match=r"\.a\.txt\.lock"), alone(tmp_path / "a.txt"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_lock_is_let_go_whatever_is_thrown(error, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 1)

    def unlink(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(error):  # noqa: PT012 - the error comes at the end
        with alone(tmp_path / "a.txt"):
            patch.setattr(os, "unlink", unlink)
        raise error
    with alone(tmp_path / "a.txt") as is_alone:
        assert is_alone
    assert not list(tmp_path.iterdir())


def test_a_planted_link_is_not_followed_and_a_leftover_is_taken(tmp_path):
    (tmp_path / ".a.txt.lock").symlink_to(tmp_path / "precious")
    with alone(tmp_path / "a.txt") as is_alone:
        assert not is_alone
    assert not (tmp_path / "precious").exists()
    (tmp_path / ".b.txt.lock").touch()
    with alone(tmp_path / "b.txt") as is_alone:
        assert is_alone
    assert not (tmp_path / ".b.txt.lock").exists()


@pytest.mark.parametrize("number", [None, errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EIO])
def test_without_locks_work_goes_on_and_nothing_is_left(number, tmp_path, monkeypatch):
    if number is None:
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        fcntl = pytest.importorskip("fcntl")
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(number, "no locks")))
    with alone(tmp_path / "a.txt") as is_alone:
        assert not is_alone
    assert not list(tmp_path.iterdir())

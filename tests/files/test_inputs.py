import os
import pickle
import socket
import threading

import pytest

from lwptv_lightning.files import InputFile, beside


class Refusal(ValueError):
    pass


@pytest.fixture
def make(tmp_path):
    """``make(kind)``: the path of a file of a kind that is not to be read."""

    def fifo(path):
        os.mkfifo(path)

    def a_socket(path):
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))

    def folder(path):
        path.mkdir()

    def device(path):
        path.symlink_to("/dev/zero")

    kinds = {"a FIFO": fifo, "a socket": a_socket, "a folder": folder, "a character device": device}

    def made(kind, name="odd"):
        kinds[kind](tmp_path / name)
        return tmp_path / name

    return made


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a folder", "a character device"])
def test_what_is_no_regular_file_is_refused_without_waiting(kind, make):
    refused = []

    def look():
        with pytest.raises(Refusal, match=rf"odd: expected a regular file, not {kind}\."):
            InputFile.at(make(kind), Refusal)
        refused.append(kind)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(5)
    assert refused == [kind]


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have(name, tmp_path):
    with pytest.raises(Refusal, match="no file can be opened by this name"):
        InputFile.at(tmp_path / name, Refusal)


def test_links_in_a_circle(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(Refusal, match="no file can be opened by this name"):
        InputFile.at(tmp_path / "a", Refusal)
    with pytest.raises(FileNotFoundError):
        InputFile.at(tmp_path / "absent", Refusal)


def replace(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


CHANGES = {
    "another file has taken its place": replace,
    "it had 100 bytes and has 50": lambda path: os.truncate(path, 50),
    "it had 100 bytes and has 101": lambda path: path.write_bytes(bytes(101)),
    "it was written to": lambda path: os.utime(path, ns=(1, 1)),
    "it cannot be found any more": lambda path: path.unlink(),
}


@pytest.mark.parametrize("words", CHANGES)
def test_a_file_that_was_changed_is_named_with_what_changed(words, tmp_path):
    path = tmp_path / "input"
    path.write_bytes(bytes(100))
    file = InputFile.at(path, Refusal)
    file.require_unchanged()
    assert file.text() == bytes(100)
    CHANGES[words](path)
    for given in (file, pickle.loads(pickle.dumps(file))):
        with pytest.raises(Refusal, match=rf"input: changed while it was in use: {words}"):
            given.require_unchanged()
    if path.exists():
        with pytest.raises(Refusal, match=words):
            file.open()


def test_a_fifo_in_the_place_of_a_file_does_not_block(tmp_path):
    path = tmp_path / "input"
    path.write_bytes(b"1")
    file = InputFile.at(path, Refusal)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Refusal, match="another file has taken its place|it had 1 bytes"):
        file.open()


def test_a_file_of_text_is_a_small_one(tmp_path):
    with (tmp_path / "input").open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(Refusal, match="expected a small file of text"):
        InputFile.at(tmp_path / "input", Refusal).text()


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/../../x", "/etc/passwd", "C:\\x", "c:x", "\\\\host\\share\\x", "\\x", "..\\x", "//host/x"],
)
def test_a_name_that_leads_outside(name, tmp_path):
    with pytest.raises(Refusal, match="leads outside of this folder"):
        beside(tmp_path, name, Refusal)


def test_names_inside(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "x").write_text("")
    (tmp_path / "real" / "y").symlink_to("x")
    for folder in (tmp_path / "real", tmp_path / "link"):
        for name in ("x", "y", "a..b", "sub/x", "absent"):
            assert beside(folder, name, Refusal) == folder / name


def test_links_that_lead_outside(tmp_path):
    inside, outside = tmp_path / "model", tmp_path / "secret"
    inside.mkdir()
    outside.mkdir()
    (outside / "x").write_text("")
    (inside / "file").symlink_to("../secret/x")
    (inside / "folder").symlink_to(outside)
    (inside / "twice").symlink_to("file")
    for name in ("file", "folder/x", "twice", "folder/absent"):
        with pytest.raises(Refusal, match="is a link that leads outside"):
            beside(inside, name, Refusal)
    # The user's own link says which folder is meant.
    (inside / "weights").symlink_to(outside / "weights")
    assert beside(inside, "file", Refusal, origin=inside / "weights") == inside / "file"


def test_the_cache_of_the_hub_is_a_folder_of_links(tmp_path):
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    (snapshot / "sub").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1").write_text("")
    (tmp_path / "models--owner--other").mkdir()
    (tmp_path / "models--owner--other" / "x").write_text("")
    (snapshot / "x").symlink_to("../../blobs/1")
    (snapshot / "sub" / "x").symlink_to("../../../blobs/1")
    (snapshot / "other").symlink_to("../../../models--owner--other/x")
    assert beside(snapshot, "x", Refusal) == snapshot / "x"
    assert beside(snapshot / "sub", "x", Refusal) == snapshot / "sub" / "x"
    for name in ("other", "../x"):
        with pytest.raises(Refusal, match="leads outside"):
            beside(snapshot, name, Refusal)

import json
import warnings

import pytest
import torch

from lwptv_lightning.search.store import Found, Store

ABOUT, DATA = {"recipe": "ties", "\udcff": 1.5}, {"id/a": [13, "f0"], "ood/b": [8, "f1"]}


def found(seed=0):
    generator = torch.Generator().manual_seed(seed)
    outcomes = {name: torch.rand(size, generator=generator) > 0.5 for name, (size, _) in DATA.items()}
    return Found(outcomes, 0.25, None)


@pytest.fixture
def store(tmp_path):
    made = Store.at(tmp_path / "a" / "store")
    made.keep(ABOUT, DATA, found())
    return made


def file_of(store):
    (path,) = store.folder.glob("*-*.json")
    return path


def test_what_is_kept_is_found_again_by_all_that_decides_it(store):
    read = Store.at(str(store.folder)).find(ABOUT, DATA)
    assert {name: value.tolist() for name, value in read.outcomes.items()} == {
        name: value.tolist() for name, value in found().outcomes.items()
    }
    assert (read.seconds, read.change) == (0.25, None)
    assert store.has(ABOUT)
    for about, data in (
        ({**ABOUT, "recipe": "dare"}, DATA),
        (ABOUT, {**DATA, "id/a": [13, "f9"]}),
        (ABOUT, {"id/a": DATA["id/a"]}),
    ):
        assert store.find(about, data) is None
    assert not store.has({})


def damage(path, kind):
    text = path.read_bytes()
    match kind:
        case "bit":
            place = text.index(b'"right": "') + 11
            path.write_bytes(text[:place] + bytes([text[place] ^ 2]) + text[place + 1 :])
        case "seconds":
            path.write_bytes(text.replace(b"0.25", b"0.35"))
        case "cut":
            path.write_bytes(text[: len(text) // 2])
        case "empty":
            path.write_bytes(b"")
        case "zeros":
            path.write_bytes(bytes(len(text)))
        case "list":
            path.write_text("[1, 2]")
        case "format":
            path.write_bytes(text.replace(b"lwptv sweep 1", b"lwptv sweep 9"))
        case "folder":
            path.unlink()
            path.mkdir()


@pytest.mark.parametrize("kind", ["bit", "seconds", "cut", "empty", "zeros", "list", "format", "folder"])
def test_a_damaged_file_is_told_and_not_served(kind, store):
    damage(file_of(store), kind)
    with pytest.warns(UserWarning, match=r"is damaged \(.*\), and is measured anew"):
        assert store.find(ABOUT, DATA) is None
    if kind != "folder":
        store.keep(ABOUT, DATA, found())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert store.find(ABOUT, DATA) is not None


def test_a_file_under_anothers_name_is_not_served(store):
    other = {**ABOUT, "recipe": "dare"}
    store.keep(other, DATA, found(1))
    own, *_ = [path for path in store.folder.glob("*-*.json") if '"dare"' in path.read_text()]
    (mine,) = [path for path in store.folder.glob("*-*.json") if path != own]
    mine.write_bytes(own.read_bytes())
    with pytest.warns(UserWarning, match="it is about something else"):
        assert store.find(ABOUT, DATA) is None


def test_files_say_what_they_are_of_and_are_the_same_when_written_again(store):
    before = file_of(store).read_bytes()
    assert json.loads(before)["content"]["about"] == ABOUT
    store.keep(ABOUT, DATA, found())
    assert file_of(store).read_bytes() == before


def test_plain_values_are_remembered(store):
    assert store.recall({"gates": 1}) is None
    store.remember({"gates": 1}, {"rule": "ties"})
    assert store.recall({"gates": 1}) == {"rule": "ties"}
    assert not store.has({"gates": 2})


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is no folder"):
        Store.at(tmp_path / "file")
    with pytest.raises(TypeError, match="store must be a folder"):
        Store.at(7)


def test_what_a_killed_process_left_beside_its_file_is_cleared_as_a_store_is_opened(tmp_path):
    stage = tmp_path / f".{'a' * 40}.json.{'0' * 16}.tmp"
    stage.mkdir()
    (stage / "lock").touch()
    (stage / "left").write_text("half")
    Store.at(tmp_path)
    assert not stage.exists()

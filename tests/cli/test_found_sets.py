import pytest
from _helpers.own_suite import write_images

from lwptv_lightning.cli.found_sets import bare, chosen, find_sets, words_of

PLACES = {
    "images/id/cats": ("cats", "", "id", ""),
    "images/ood/cats_drawn": ("cats_drawn", "", "ood", ""),
    "data/cats/test": ("cats", "test", "", ""),
    "data/cats/val": ("cats", "validation", "", ""),
    "images/train/cats": ("cats", "train", "", ""),
    "images/ood/near/cats/test": ("cats", "test", "ood", "near"),
    "images/far/cats": ("cats", "", "ood", "far"),
    "ood/weather/fog": ("fog", "", "ood", "weather"),
    "cats_test": ("cats", "test", "", ""),
    "val-my cats": ("my cats", "validation", "", ""),
    "Test/In-Domain/Cats": ("Cats", "test", "id", ""),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_path_says_what_a_set_is(place, tmp_path):
    write_images(tmp_path / place, ["a", "b"], count=1)
    (tmp_path / place / ".hidden").mkdir()
    (found,) = find_sets(tmp_path)
    assert (found.name, found.split, found.domain, found.group) == PLACES[place]
    assert (found.classes, found.path) == (("a", "b"), tmp_path / place)


def test_what_holds_no_images_is_no_set(tmp_path):
    (tmp_path / "models" / "cats").mkdir(parents=True)
    (tmp_path / "models" / "cats" / "x.pt").touch()
    assert find_sets(tmp_path) == []


def test_names_are_compared_by_their_letters():
    assert bare("My Cats_2") == bare("my-cats 2") != bare("my cats 3")
    assert words_of("a_b-c.d e") == ("a", "b", "c", "d", "e")


def test_the_first_split_that_there_is_is_taken(tmp_path):
    for split in ("val", "train"):
        write_images(tmp_path / "cats" / split, ["a"], count=1)
    sets = find_sets(tmp_path)
    assert chosen(sets, ("test", "", "validation")).split == "validation"
    assert chosen(sets, ("test",)) is None

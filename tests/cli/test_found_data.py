from pathlib import Path

from lwptv_lightning.cli.found_data import arrange
from lwptv_lightning.cli.found_sets import FoundSet


def found_set(name, classes, *, split="", domain="", group=""):
    path = Path("/", *filter(None, (domain, group, name, split)))
    return FoundSet(path, (name,), split, domain, group, tuple(classes))


LOGITS = {"cats": 2, "cars": 3}
ID = [found_set("cats", "ab"), found_set("cars", "xyz")]


def arranged(*sets, logits=LOGITS, base=7, shared=False):
    return arrange([*ID, *sets], logits, Path("/base.pt"), base, shared)


def test_sets_named_as_tasks_are_id_and_others_ood():
    found = arranged(found_set("drawn", "xz", domain="ood", group="far"))
    assert found.id == dict(zip(("cats", "cars"), ID, strict=True))
    assert list(found.ood) == ["far/drawn"]
    assert found.heads == {"drawn": "cars"}


def test_splits_are_told_apart():
    splits = [found_set("dogs", "ab", split=split) for split in ("train", "validation", "test")]
    found = arranged(*splits, logits=LOGITS | {"dogs": 2})
    assert (found.id["dogs"].split, found.validation["dogs"].split) == ("test", "validation")
    assert [each.split for each, _ in found.left_out.values()] == ["train"]
    found = arranged(splits[1], logits=LOGITS | {"dogs": 2})
    assert found.id["dogs"].split == "validation"
    assert "dogs" not in found.validation
    assert "dogs" not in arranged(splits[0], logits=LOGITS | {"dogs": 2}).id


def test_whose_head_a_set_has():
    found = arranged(
        found_set("cats_fog", "ab"),
        found_set("far", "1234567"),
        found_set("none", "qr"),
        found_set("cars", "x", domain="ood", group="night"),
    )
    assert found.heads == {"cats_fog": "cats", "far": Path("/base.pt")}
    assert list(found.ood) == ["cats_fog", "far", "night/cars"]  # the last has the head of its own name
    assert [why for _, why in found.left_out.values()] == [
        "no task has its 2 classes, and the base's classifier tells 7 apart: give it a head under 'heads'"
    ]


def test_classes_of_several_tasks_say_nothing_of_the_head():
    found = arranged(found_set("dogs", "ab"), found_set("new", "a"), logits=LOGITS | {"dogs": 2})
    ((_, why),) = found.left_out.values()
    assert why == "its classes are those of cats, dogs: say under 'heads' whose head it has"
    assert arranged(found_set("dogs", "ab"), found_set("dogs new", "a"), logits=LOGITS | {"dogs": 2}).heads == {
        "dogs new": "dogs"
    }


def test_one_classifier_for_all_needs_no_heads():
    found = arranged(found_set("new", "a"), found_set("other", "q"), shared=True)
    assert (list(found.ood), found.heads) == (["new"], {})
    assert len(found.left_out) == 1


def test_names_that_differ_are_matched_by_folder_and_classes():
    found = arranged(found_set("animals", "1234", domain="id"), logits=LOGITS | {"dogs_finetuned": 4})
    assert found.id["dogs_finetuned"].name == "animals"
    found = arranged(found_set("dogs", "1234"), logits=LOGITS | {"dogs_finetuned": 4})
    assert found.id["dogs_finetuned"].name == "dogs"
    found = arranged(found_set("lost", "12345", domain="id"))
    assert "of no task" in next(iter(found.left_out.values()))[1]
    alone = arrange([found_set("d", "abc")], {"only": 3}, Path("/b"), 7, False)
    assert alone.id["only"].name == "d"


def test_more_classes_than_the_head_has_are_left_out():
    found = arranged(found_set("dogs", "abc"), logits=LOGITS | {"dogs": 2})
    assert "dogs" not in found.id
    assert next(iter(found.left_out.values()))[1] == "3 classes, and the head of 'dogs' tells 2 apart"


def test_sets_of_one_name_in_two_groups_keep_their_groups():
    found = arranged(*(found_set("fog", "ab", domain="ood", group=group) for group in ("near", "far")))
    assert found.heads == {"near/fog": "cats", "far/fog": "cats"}

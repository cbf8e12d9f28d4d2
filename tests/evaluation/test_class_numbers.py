import pytest
from torch.utils.data import Dataset

from lwptv_lightning.evaluation.class_numbers import numbered
from lwptv_lightning.evaluation.named_sets import NamedSet
from lwptv_lightning.registry import ConfigurationError


class Labels(Dataset):
    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return None, self.labels[index]


def folder(*classes):
    return NamedSet(Labels(range(len(classes))), classes, is_folder=True)


TASKS = {"cats": folder("lion", "lynx", "puma"), "night/cars": folder("bus", "van")}


def number(name, data, aliases=None, others=frozenset(), tasks=TASKS):
    found, note = numbered(f"data.ood.{name}", name, data, tasks, aliases or {}, others)
    return [found.data[place][1] for place in range(len(found.data))], note


def test_labels_are_those_of_the_head():
    some = folder("lynx", "puma")
    assert number("drawn", some, {"drawn": "sketch", "sketch": "cats"}) == ([1, 2], "")
    assert number("far/drawn", some, {"drawn": "cats"}) == ([1, 2], "")
    assert number("cats", some) == ([1, 2], "")
    assert number("cars", folder("van")) == ([1], "")


def test_a_head_of_its_own_knows_other_classes():
    assert number("drawn", folder("a", "b"), others=frozenset({"drawn"})) == ([0, 1], "")
    assert number("drawn", folder("a", "b"), {"drawn": "own"}, frozenset({"own"})) == ([0, 1], "")


def test_where_all_sets_share_a_classifier_they_share_its_numbers():
    shared = {"a": folder("x", "y", "z"), "b": folder("x", "y", "z")}
    assert number("c", folder("z"), tasks=shared) == ([2], "")
    assert number("c", folder("van")) == ([1], "")  # one task alone knows it
    with pytest.raises(ConfigurationError, match="data.ood.c: the class 'w' of this set is unknown to its head"):
        number("c", folder("w"), tasks=shared)


def test_an_unknown_class_is_refused_with_set_and_head():
    message = (
        r"data.ood.drawn: the class 'linx' and 1 more of this set is unknown to its head, 'cats'. Did you mean 'lynx'"
    )
    with pytest.raises(ConfigurationError, match=message):
        number("drawn", folder("linx", "pumas"), {"drawn": "cats"})


def test_names_that_are_no_folders_are_taken_where_they_are_known_and_else_said():
    named = NamedSet(Labels(range(2)), ("puma", "lion"))
    assert number("drawn", named, {"drawn": "cats"}) == ([2, 0], "")
    labels, note = number("drawn", NamedSet(Labels(range(2)), ("0 - zero", "1 - one")), {"drawn": "cats"})
    assert labels == [0, 1]
    assert "data.ood.drawn: its names of classes are others than those of data.id.cats" in note
    assert number("drawn", NamedSet(Labels([1])), {"drawn": "cats"}) == ([1], "")


def test_names_in_a_circle_end():
    assert number("a", folder("q"), {"a": "b", "b": "a"}) == ([0], "")

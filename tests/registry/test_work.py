"""Long work that someone watches, or nobody."""

from contextlib import contextmanager

import pytest

from lwptv_lightning.registry import leads, steps_of, watching, work


class Watcher:
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    @contextmanager
    def __call__(self, what, total):
        self.told.append((what, total))
        try:
            yield lambda steps=1, what=None: self.told.append((steps, what))
        finally:
            self.told.append("end")


def test_a_watcher_is_told_of_each_step_and_of_the_end():
    watcher = Watcher()
    with watching(watcher), work("Reading", 3) as advance:
        advance(2, "Reading b")
        advance()
    assert watcher.told == [("Reading", 3), (2, "Reading b"), (1, None), "end"]


def test_items_are_steps_also_where_not_all_are_taken():
    watcher = Watcher()
    with watching(watcher):
        items = steps_of("abc", "Letters", 3)
        assert [next(items), next(items)] == ["a", "b"]
        items.close()
    assert watcher.told == [("Letters", 3), (1, None), "end"]


def test_who_watched_before_watches_again():
    outer = Watcher()
    with watching(outer):
        with watching(None):
            assert list(steps_of("ab", "Hidden")) == ["a", "b"]
        with pytest.raises(ValueError, match="broken"), work("Broken"):
            raise ValueError("broken")
    with work("Unseen") as advance:
        advance(3, "more")
    assert outer.told == [("Broken", None), "end"]


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK"])
def test_one_process_of_several_leads(name, monkeypatch):
    monkeypatch.setenv(name, "0")
    assert leads()
    monkeypatch.setenv(name, "1")
    assert not leads()

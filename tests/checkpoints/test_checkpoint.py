import pickle

import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning import TaskVectors, open_checkpoint
from lwptv_lightning.checkpoints import (
    Checkpoint,
    HeaderComparison,
    TensorHeader,
    add_difference,
    compare_headers,
    convert,
    holding,
    match_names,
    some_of,
)

BASE = {"net.w": torch.ones(3), "net.b": torch.zeros(2)}
TINY = {"net.w": torch.full((3,), 1e-9)}  # lost in a sum with the base


def added():
    base = open_checkpoint(BASE)
    return add_difference(open_checkpoint(TINY), base, base)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda model: model.renamed({"weight": "net.w"}), "weight"),
        (lambda model: model.without_prefix("net."), "w"),
        (lambda model: match_names(model, {"w": TensorHeader((3,), torch.float32)}), "w"),
        (lambda model: match_names(model, {"whole.net.w": TensorHeader((3,), torch.float32)}), "whole.net.w"),
        (lambda model: holding(model.renamed({"v": "net.w"}), ["v"], torch.clone), "v"),
        (lambda model: holding(model, [], torch.clone).without_prefix("net."), "w"),
        (lambda model: pickle.loads(pickle.dumps(model.without_prefix("net."))), "w"),
    ],
    ids=["renamed", "without prefix", "prefix found", "prefix added", "loaded", "not loaded", "pickled"],
)
def test_an_added_difference_stays_unrounded_under_other_names(make, name):
    values, is_difference = make(added()).read_for_difference(name)
    assert is_difference
    assert torch.equal(values, TINY["net.w"])
    assert torch.equal(make(added()).read(name), BASE["net.w"])


def test_task_vectors_of_an_open_model_that_was_added_are_exact():
    base = {name.removeprefix("net."): tensor for name, tensor in BASE.items()}
    vectors = TaskVectors.open(base, {"a": added()})
    assert torch.equal(vectors.stack("w")[0], TINY["net.w"])


def test_an_added_task_vector_is_a_model_and_not_added_once_more(tmp_path):
    save_file({"net.w": torch.ones(3)}, tmp_path / "a.safetensors", {"lwptv_kind": "task_vector"})
    base = open_checkpoint(BASE)
    model = add_difference(open_checkpoint(tmp_path / "a.safetensors"), base, base)
    assert TaskVectors.open(base, {"a": model}).expert("a", "net.w").tolist() == [2.0] * 3


def test_no_checkpoint_inherits_another():
    assert Checkpoint.__subclasses__() == []


def test_a_reader_needs_no_more_than_read(counting_checkpoint):
    checkpoint, reads = counting_checkpoint(BASE)
    values, is_difference = checkpoint.without_prefix("net.").read_for_difference("w")
    assert not is_difference
    assert torch.equal(values, BASE["net.w"])
    assert dict(reads) == {"net.w": 1}


def test_folder_and_format_are_known_of_files_and_stay_with_what_is_made_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(BASE, "m.safetensors")
    torch.save(BASE, "m")
    for file, format in (("m.safetensors", "safetensors"), ("m", "torch"), (".", "safetensors")):
        opened = open_checkpoint(file)
        for made in (
            opened,
            opened.without_prefix("net."),
            convert(opened, dict),
            holding(opened, ["net.w"], torch.clone),
        ):
            assert (made.folder, made.format) == (tmp_path, format)


def test_what_is_in_memory_has_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in (BASE, torch.nn.Linear(2, 2)):
        assert (open_checkpoint(source).folder, open_checkpoint(source).format) == (None, "in memory")


def test_some_of_says_how_many_more():
    assert some_of("abc", most=2) == "a, b, and 1 more."
    assert some_of("ab", most=2) == "a, b."


FLOAT, HALF, INTEGER = (TensorHeader((2,), dtype) for dtype in (torch.float32, torch.float16, torch.int64))
LONG = TensorHeader((3,), torch.int64)
OURS = {"same": FLOAT, "half": FLOAT, "gone": FLOAT, "long": FLOAT, "kind": FLOAT}
OTHER = {"more": FLOAT, "kind": INTEGER, "long": LONG, "half": HALF, "same": FLOAT}


def test_each_name_stands_under_one_heading_in_its_checkpoints_order():
    assert compare_headers(OURS, OTHER) == HeaderComparison(
        ("same", "half"), ("gone",), ("more",), ("long",), ("kind",)
    )


def test_globs_leave_names_aside_on_both_sides():
    found = compare_headers(OURS, OTHER, ["*o*e", "long", "k*"])  # "gone" and "more"
    assert found == HeaderComparison(("same", "half"), (), (), (), ())

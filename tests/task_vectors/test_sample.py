"""A merge judges a sample of what it reads, and reads no more for that."""

import pytest
import torch
from _helpers.states import noise, random_state
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, MergeRecipe, TaskVectors, merge, open_checkpoint
from lwptv_lightning.inspection import check
from lwptv_lightning.task_vectors.sample import Sample


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_sample_suffices(counting_checkpoint):
    base = {f"{i}": draw(64, 64, seed=i) for i in range(600)}
    opened, reads = counting_checkpoint(base)
    stranger = {name: draw(64, 64, seed=1000 + int(name)) for name in base}
    sample = Sample(opened, {"far": open_checkpoint(stranger), "near": opened}, tuple(base), ())
    (doubt,) = sample.doubts()
    assert doubt.startswith("task 'far' (state dict): another base")
    assert sum(reads.values()) <= 2 * 512


def test_of_small_models_no_more_is_told_than_that_weights_are_a_difference():
    base = {"w": draw(20, 20)}
    experts = {"far": {"w": draw(20, 20, seed=5)}, "difference": {"w": 0.01 * draw(20, 20, seed=6)}}
    sample = Sample(open_checkpoint(base), {task: open_checkpoint(own) for task, own in experts.items()}, ("w",), ())
    (doubt,) = sample.doubts()
    assert doubt.startswith("task 'difference'")


def test_a_task_is_judged_by_what_it_keeps_and_nothing_else_of_it_is_read(counting_checkpoint):
    base = {name: draw(64, 64, seed=seed) for seed, name in enumerate("vw")} | {"table": torch.arange(9)}
    stranger = {"v": noise(base, 1)["v"], "w": draw(64, 64, seed=9), "table": torch.arange(9) + 1}
    expert, reads = counting_checkpoint(stranger)
    sample = Sample(open_checkpoint(base), {"a": expert, "b": open_checkpoint(noise(base, 2))}, ("v", "w"), ("table",))
    assert sample.doubts({"v": [False, True], "w": [False, True]}) == ()
    assert not reads
    (unmerged,) = sample.doubts({"v": [True, True], "w": [False, True]})
    assert "table" in unmerged
    assert "w" not in reads
    doubts = sample.doubts()
    assert doubts[0].endswith("re-initialised or permuted: w.")
    assert doubts[1:] == (unmerged,)
    assert doubts == sample.doubts({"v": [True, True], "w": [True, False]})
    assert set(reads.values()) == {1}


def test_figures_that_are_measured_one_after_the_other_are_those_measured_together():
    base = random_state(0, shapes={"v": (40, 40), "w": (30, 50)})
    experts = {task: open_checkpoint(noise(base, seed, 3.0)) for seed, task in enumerate("abc")}
    wrong = {
        task: open_checkpoint(random_state(seed, shapes={"v": (40, 40), "w": (30, 50)})) for seed, task in [(7, "d")]
    }
    together, in_turn = (Sample(open_checkpoint(base), experts | wrong, ("v", "w"), ()) for _ in range(2))
    for task in (2, 0):
        in_turn.doubts({name: [task == other for other in range(4)] for name in "vw"})
    assert in_turn.doubts() == together.doubts() != ()


def stored(path, tensors, **metadata):
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("shape", [(4, 8), (64, 64)])
def test_whole_weights_that_are_labelled_as_a_task_vector_are_refused_by_name(shape, tmp_path):
    base = random_state(0, shapes={"w": shape})
    tuned = noise(base, 1, 0.01)
    wrong = stored(tmp_path / "task_vector.safetensors", tuned, lwptv_kind="task_vector")
    words = "whole weights, labelled as a task vector: cosine 1.00 to the base's, norm 1 times theirs"
    with pytest.raises(CheckpointError, match=rf"task_vector\.safetensors\): {words}"):
        merge(TaskVectors.open(base, {"a": wrong}), "ties")
    (found,) = check(base, {"a": wrong})
    assert words in found.verdict
    right = stored(tmp_path / "right.safetensors", {"w": tuned["w"] - base["w"]}, lwptv_kind="task_vector")
    far = stored(tmp_path / "far.safetensors", random_state(2, shapes={"w": shape}), lwptv_kind="task_vector")
    shrunk = stored(tmp_path / "shrunk.safetensors", {"w": -0.1 * base["w"]}, lwptv_kind="task_vector")
    for path in (right, far, shrunk):
        merge(TaskVectors.open(base, {"a": path}), "ties")


@pytest.mark.parametrize("shape", [(4, 8), (64, 64)])
def test_a_difference_in_the_place_of_whole_weights_is_told(shape, tmp_path):
    base = random_state(0, shapes={"w": shape})
    difference = {"w": noise(base, 1, 0.01)["w"] - base["w"]}
    words = "a difference from the base in the place of whole weights: norm 0.0"
    with pytest.warns(UserWarning, match=rf"task 'a' .*{words}"):
        merge(TaskVectors.open(base, {"a": stored(tmp_path / "task_vector.safetensors", difference)}), "ties")
    (found,) = check(base, {"a": difference})
    assert words in found.verdict
    assert check(base, {"a": {"w": 0.3 * base["w"]}})[0].passed


def test_whole_weights_as_a_difference_are_no_matter_where_they_are_pruned(tmp_path):
    base = random_state(0, shapes={"v.weight": (64, 64), "w.weight": (64, 64)})
    wrong = stored(tmp_path / "task_vector.safetensors", noise(base, 1, 0.01), lwptv_kind="task_vector")
    vectors = TaskVectors.open(base, {"a": wrong})
    with pytest.raises(CheckpointError, match="whole weights"):
        merge(vectors, MergeRecipe(prune=["v"]))
    merged = merge(vectors, MergeRecipe(prune=["*"]))
    assert all(torch.equal(merged[name], tensor) for name, tensor in base.items())

import pytest
import torch
from _helpers.states import noise, random_state
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, TaskVectors, merge, open_checkpoint
from lwptv_lightning.inspection import check
from lwptv_lightning.task_vectors.judgement import UNLIKE, doubts, judge, measure, measured, same_weights


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def figures_of(base, *experts, parts=(slice(None),)):
    opened, others = open_checkpoint(base), [open_checkpoint(expert) for expert in experts]
    return {name: measure(name, opened, others, parts) for name in base}


def test_figures_are_the_sums_of_the_parts_in_float64():
    base, tuned = {"w": draw(30, 5)}, {"w": draw(30, 5, seed=1)}
    whole = figures_of(base, tuned)["w"]
    parts = figures_of(base, tuned, parts=[slice(0, 40), slice(40, 150)])["w"]
    rows = torch.stack([base["w"].double().flatten(), tuned["w"].double().flatten() - base["w"].double().flatten()])
    for found in (whole, parts):
        assert found.elements == 150
        torch.testing.assert_close(found.sums, rows.sum(1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.gram, rows @ rows.T, rtol=1e-12, atol=1e-12)


def test_the_cosine_is_that_of_elements_less_their_means():
    base, tuned = {"w": 3 + draw(40, 40)}, {"w": 3 + draw(40, 40, seed=1)}
    found = judge(figures_of(base, tuned), 0)
    pair = torch.stack([base["w"].flatten(), tuned["w"].flatten()])
    assert found.cosine == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-6)
    assert found.another_base
    assert torch.cosine_similarity(*pair, dim=0) > 0.8, "means alone make weights alike"


def test_every_tensor_counts_no_more_than_its_cap():
    base = {"small": draw(4096), "large": draw(100_000, seed=1)}
    found = judge(figures_of(base, {"small": base["small"] * 1.1, "large": draw(100_000, seed=2)}), 0)
    assert found.cosine == pytest.approx(0.5, abs=0.02)
    assert found.outliers == {"large": UNLIKE}


def test_few_elements_must_agree_better_than_by_chance():
    base = {"w": draw(5, 8)}
    assert judge(figures_of(base, noise(base, 1, 0.3)), 0).tensors == 1
    assert not judge(figures_of(base, noise(base, 1, 0.3)), 0).another_base
    assert judge(figures_of(base, {"w": draw(5, 8, seed=4)}), 0).another_base


def test_nothing_is_said_of_nothing():
    assert judge({}, 0).told == ""
    constant = judge(figures_of({"w": torch.ones(9)}, {"w": draw(9)}), 0)
    assert (constant.cosine, constant.told) == (None, "")


def test_equal_task_vectors():
    base = {"w": draw(6, 6)}
    tuned = noise(base, 1)
    found = figures_of(base, tuned, tuned, noise(base, 2), base)
    assert same_weights(found, 1, 0)
    assert not same_weights(found, 2, 0)
    assert not same_weights(found, 3, 3), "a zero task vector is no expert"


def test_a_sample_suffices_and_small_models_are_left_alone(counting_checkpoint):
    base = {f"{i}": draw(64, 64, seed=i) for i in range(600)}
    opened, reads = counting_checkpoint(base)
    stranger = {name: draw(64, 64, seed=1000 + int(name)) for name in base}
    assert ["another base" in told for told in doubts(tuple(base), opened, [open_checkpoint(stranger), opened])] == [
        True,
        False,
    ]
    assert sum(reads.values()) <= 2 * 512
    small, reads = counting_checkpoint({"w": draw(20, 20)})
    assert doubts(("w",), small, [open_checkpoint({"w": draw(20, 20, seed=5)})]) == [""]
    assert not reads


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


@pytest.mark.parametrize("elements", [4096, 4097, 100_000])
def test_a_sample_reaches_from_the_beginning_to_the_end(elements):
    base = {"w": torch.zeros(elements)}
    tuned = {"w": torch.arange(1.0, elements + 1)}
    (found,) = measured(["w"], open_checkpoint(base), [open_checkpoint(tuned)]).values()
    assert found.elements == 4096
    step = (elements - 1024) // 3
    taken = torch.cat([tuned["w"][step * part :][:1024] for part in range(4)]).double()
    torch.testing.assert_close(found.sums[1], taken.sum())
    torch.testing.assert_close(found.gram[1, 1], taken @ taken)
    assert elements - taken.max() < 3


def test_experts_of_several_dtypes_and_absent_ones_are_measured_together():
    base, tuned = {"w": draw(30, 5)}, {"w": draw(30, 5, seed=1)}
    opened = [open_checkpoint(tuned), None, open_checkpoint({"w": tuned["w"].bfloat16()})]
    found = measure("w", open_checkpoint(base), opened, [slice(None)])
    narrow = tuned["w"].bfloat16().double() - base["w"].double()
    rows = torch.stack([base["w"].double(), tuned["w"].double() - base["w"].double(), 0 * narrow, narrow]).flatten(1)
    torch.testing.assert_close(found.gram, rows @ rows.T)

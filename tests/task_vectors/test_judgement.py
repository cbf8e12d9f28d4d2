import pytest
import torch
from _helpers.states import noise

from lwptv_lightning import open_checkpoint
from lwptv_lightning.task_vectors.judgement import UNLIKE, judge, measure, same_weights, spread


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


@pytest.mark.parametrize("elements", [4096, 4097, 100_000])
def test_a_sample_reaches_from_the_beginning_to_the_end(elements):
    base = {"w": torch.zeros(elements)}
    tuned = {"w": torch.arange(1.0, elements + 1)}
    found = figures_of(base, tuned, parts=[spread(elements)])["w"]
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

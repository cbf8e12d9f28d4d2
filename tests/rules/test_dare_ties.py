import pytest
import torch
from _helpers.golden import golden_vectors, largest_error, use_stored_draws
from _helpers.small_models import merged_row, quick, task_rows, ties, vectors_of
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules import MergeContext
from lwptv_lightning.rules.dare import DARE
from lwptv_lightning.rules.dare_ties import DARETIES
from lwptv_lightning.rules.ties import TIES


def dropped_rows(vectors, rule):
    """What `dare` makes of each task, over the whole model as flat lists."""
    parts = [
        rule.parts(vectors.stack(name), MergeContext(name, vectors.tasks)).reshape(len(vectors), -1)
        for name in vectors.names
    ]
    return torch.cat(parts, dim=1).tolist()


@quick
@given(task_rows(), st.sampled_from([0.25, 0.5, 1.0]), st.sampled_from([0.2, 0.5, 1.0]), st.integers(0, 3))
def test_is_ties_of_what_dare_leaves(rows, density, trim_density, seed):
    rule = DARETIES(density=density, trim_density=trim_density, seed=seed)
    expected = ties(dropped_rows(vectors_of(rows), DARE(density=density, seed=seed)), trim_density, "sum")
    assert merged_row(rows, rule) == pytest.approx(expected, abs=1e-6)


def test_the_survey_streams_over_the_draws_of_dare_on_a_real_model(monkeypatch):
    use_stored_draws(monkeypatch)
    vectors = golden_vectors("main")
    result = merge(vectors, MergeRecipe(rule="dare_ties", scale=0.5))
    merged = iter(ties(dropped_rows(vectors, DARE()), 0.2, "sum"))
    expected = {}
    for name in vectors.names:
        base = vectors.base(name)
        delta = torch.tensor([next(merged) for _ in range(base.numel())])
        expected[name] = base + 0.5 * delta.reshape(base.shape)
    assert largest_error(result, expected) < 1e-6


def test_a_density_of_one_is_ties():
    vectors = golden_vectors("main")
    ours = merge(vectors, MergeRecipe(rule=DARETIES(density=1, reduce="mean"), scale=1.0))
    assert largest_error(ours, merge(vectors, MergeRecipe(rule=TIES(), scale=1.0))) == 0


@pytest.mark.parametrize("arguments", [{"density": 0}, {"trim_density": 0}, {"seed": -1}])
def test_refuses_values_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DARETIES(**arguments)

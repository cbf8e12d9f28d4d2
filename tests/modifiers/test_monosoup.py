import json

import numpy as np
import pytest
import torch
from _helpers.golden import golden_error, golden_vectors
from _helpers.small_matrices import assert_near, random_stack
from _helpers.states import open_vectors

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.engine import anew
from lwptv_lightning.modifiers import MonoSoup
from lwptv_lightning.registry import UnknownNameError


@pytest.mark.parametrize("reweight", [MonoSoup(), "monosoup", {"name": "monosoup", "min_rel_update": 1e-6}], ids=str)
def test_equals_the_reference_with_one_expert(reweight):
    recipe = MergeRecipe("simple_average", reweight=reweight)
    assert golden_error(merge(golden_vectors("main", [0]), recipe), "monosoup.official_eff_rank") < 1e-5


def loop_monosoup(delta, version="effective_rank", threshold=0.8):
    """The formula, one singular triplet after the other."""
    left, values, right = np.linalg.svd(np.asarray(delta, np.float64), full_matrices=False)
    if version == "variance":
        strong = next(k for k in range(1, len(values) + 1) if (values[:k] ** 2).sum() >= threshold * (values**2).sum())
    else:
        shares = values / values.sum()
        strong = int(np.ceil(np.exp(-sum(share * np.log(share) for share in shares if share > 1e-12))))
    strong = min(strong, len(values))
    held = (values[:strong] ** 2).sum() / (values**2).sum()
    rho = (values[strong] / values[0]) ** 2 if strong < len(values) else 0.0
    low = rho + (1 - rho) * np.sqrt(max(1 - held, 0))
    total = np.zeros_like(left @ right)
    for index, value in enumerate(values):
        total += (1 - low if index < strong else low) * value * np.outer(left[:, index], right[index])
    return total


def reweighted(delta, base=None, **parameters):
    return MonoSoup(**parameters).reweighted(delta, torch.zeros_like(delta) if base is None else base, anew)


def spread(shape, seed=0):
    """A matrix whose singular values fall fast, as those of task vectors do."""
    left, values, right = torch.linalg.svd(random_stack(1, shape, seed)[0].double(), full_matrices=False)
    return (left * values.square().square() / 50 @ right).float()


@pytest.mark.parametrize("shape", [(6, 4), (4, 9), (5, 5), (12, 8), (2, 30)])
@pytest.mark.parametrize(
    "parameters",
    [{}, *({"version": "variance", "threshold": threshold} for threshold in (0.3, 0.8, 0.9, 1.0))],
    ids=str,
)
def test_weighs_strong_and_weak_directions(shape, parameters):
    for delta in (spread(shape), random_stack(1, shape)[0]):
        expected = loop_monosoup(delta, **parameters)
        assert_near(reweighted(delta, **parameters), expected, 1e-6)
        np.testing.assert_allclose(reweighted(delta.double(), **parameters), expected, rtol=0, atol=1e-12)
    assert reweighted(spread((9, 9))).norm() < 0.99 * spread((9, 9)).norm()


def test_the_usual_share_of_the_variance():
    delta = spread((7, 6))
    usual, less = (reweighted(delta, version="variance", **given) for given in ({}, {"threshold": 0.5}))
    assert_near(usual, loop_monosoup(delta, "variance", 0.8), 1e-6)
    assert not torch.allclose(usual, less)


@pytest.mark.parametrize("shape", [(6, 3, 2, 2), (5, 4, 1, 1), (3, 2, 4)])
def test_what_has_more_dimensions_is_a_matrix_of_its_first_one(shape):
    delta = random_stack(1, (shape[0], int(np.prod(shape[1:]))))[0]
    delta[0] *= 20
    assert_near(reweighted(delta.reshape(shape)), loop_monosoup(delta).reshape(shape), 1e-5)


@pytest.mark.parametrize("size", [1e-36, 1e-20, 1e-8, 1e12, 1e30])
def test_the_size_of_a_task_vector_does_not_matter(size):
    delta = spread((6, 6))
    assert_near(reweighted(delta * size) / size, reweighted(delta), 1e-5)


def test_what_is_small_beside_the_base_stays():
    delta, base = spread((6, 6)), torch.ones(6, 6)
    small = float(delta.norm() / base.norm())
    for least, changes in ((small * 0.99, True), (small * 1.01, False), (0.0, True)):
        assert torch.equal(reweighted(delta, base, min_rel_update=least), delta) != changes
        assert torch.equal(reweighted(delta * 1e-30, base * 1e-30, min_rel_update=least), delta * 1e-30) != changes


@pytest.mark.parametrize(
    "delta",
    [
        torch.zeros(4, 4),
        torch.eye(5),
        torch.outer(torch.arange(1.0, 5), torch.arange(1.0, 4)),
        torch.diag(torch.tensor([1.0, 1, 1, 0, 0])),
    ],
    ids=["zero", "flat", "rank 1", "flat of less rank"],
)
@pytest.mark.parametrize("version", ["effective_rank", "variance"])
def test_where_all_that_there_is_is_strong_nothing_changes(delta, version):
    found = reweighted(delta, version=version, threshold=None if version == "effective_rank" else 1.0)
    assert torch.equal(found, delta)


def test_treats_what_has_two_rows_and_columns():
    shapes = [(), (4,), (1, 4), (4, 1), (4, 1, 1, 1), (1, 2, 3), (0, 3), (3, 0), (2, 2), (2, 1, 2), (4, 3, 3, 3)]
    assert [shape for shape in shapes if MonoSoup().treats("w", shape)] == [(2, 2), (2, 1, 2), (4, 3, 3, 3)]
    assert not MonoSoup(exclude=("*embed*",)).treats("pos_embed", (4, 4))


def test_other_tensors_and_excluded_ones_stay():
    state = {
        "w": spread((6, 6)),
        "text_projection": spread((6, 6), 1),
        "bias": torch.ones(3),
        "scale": torch.tensor(2.0),
    }
    vectors = open_vectors({name: torch.zeros_like(value) for name, value in state.items()}, {"a": state})
    found = merge(vectors, MergeRecipe("simple_average", reweight=MonoSoup(exclude=("text_*",))))
    assert [name for name in state if not torch.equal(found[name], state[name])] == ["w"]
    assert_near(found["w"], loop_monosoup(state["w"]), 1e-6)


def test_survives_json():
    recipe = MergeRecipe("ties", reweight=MonoSoup(version="variance", threshold=0.9, exclude=("a*",)))
    assert MergeRecipe.from_json(recipe.to_json()) == recipe
    assert json.loads(recipe.to_json())["reweight"] == {
        "name": "monosoup",
        "version": "variance",
        "threshold": 0.9,
        "min_rel_update": 1e-6,
        "exclude": ["a*"],
    }


def test_refuses_what_has_no_meaning():
    with pytest.raises(ValueError, match=r"threshold is that of version='variance', .* 'effective_rank'"):
        MonoSoup(threshold=0.9)
    with pytest.raises(UnknownNameError, match="variance"):
        MonoSoup(version="varianc")
    for given in (
        {"version": "variance", "threshold": 0},
        {"version": "variance", "threshold": 80},
        {"min_rel_update": -1},
    ):
        with pytest.raises(ValueError, match=list(given)[-1]):
            MonoSoup(**given)
    with pytest.raises(UnknownNameError, match="min_rel_update"):
        MergeRecipe("ties", reweight={"name": "monosoup", "min_rel_updat": 1e-3})

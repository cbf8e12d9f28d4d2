"""What every saliency score must do; a new score is tested here without an edit."""

import pytest
import torch
from _helpers.models import MODELS, make_model, vectors_of_model

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.engine import Execution
from lwptv_lightning.layers import trace_layers
from lwptv_lightning.registry import GRANULARITIES
from lwptv_lightning.saliency import SCORES, collect_statistics, describe_scores, keep_most_salient, score_layers

EVERY_SCORE = pytest.mark.parametrize("score", sorted(SCORES))
TASKS = ("a", "b", "c")


@pytest.fixture(scope="module", params=MODELS)
def inputs(request):
    """A model, its task vectors and their statistics by granularity."""
    model = make_model(request.param)
    vectors = vectors_of_model(model, TASKS)
    layers = {granularity: trace_layers(model, granularity) for granularity in GRANULARITIES}
    statistics = {granularity: collect_statistics(vectors, each) for granularity, each in layers.items()}
    return model, vectors, layers, statistics


@EVERY_SCORE
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_layer_of_every_task_has_a_number(score, granularity, inputs):
    _, vectors, layers, statistics = inputs
    table = score_layers(statistics[granularity], score)
    assert table.tasks == vectors.tasks
    assert table.layers == layers[granularity].restrict(vectors.names).names
    assert table.values.shape == (len(TASKS), len(table.layers))
    assert table.values.dtype == torch.float64
    assert not table.values.isnan().any()
    assert int(table.numel.sum()) == sum(vectors.headers[name].numel for name in vectors.names)


@EVERY_SCORE
def test_a_score_repeats_to_the_bit_and_its_reverse_is_its_negative(score, inputs):
    statistics = inputs[3]["module"]
    once = score_layers(statistics, score, seed=3)
    assert torch.equal(once.values, score_layers(statistics, score, seed=3).values)
    assert torch.equal(score_layers(statistics, f"-{score}", seed=3).values, -once.values)


@EVERY_SCORE
def test_a_score_does_not_depend_on_the_size_of_blocks(score, inputs):
    _, vectors, layers, statistics = inputs
    in_blocks = collect_statistics(vectors, layers["module"], execution=Execution(block_bytes=5 * 4 * len(TASKS)))
    assert torch.equal(score_layers(in_blocks, score).values, score_layers(statistics["module"], score).values)


@pytest.mark.parametrize("score", sorted(set(SCORES) - {"random"}))
def test_a_score_goes_with_the_task_and_not_with_its_place(score, inputs):
    _, vectors, layers, statistics = inputs
    turned = collect_statistics(vectors.select(reversed(TASKS)), layers["module"])
    expected = score_layers(statistics["module"], score).values.flip(0)
    torch.testing.assert_close(score_layers(turned, score).values, expected, atol=1e-6, rtol=1e-5)


@EVERY_SCORE
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_recipe_prunes_what_the_score_ranks_lowest(score, granularity, inputs):
    model, vectors, layers, statistics = inputs
    recipe = MergeRecipe(score=score, ratio=0.5, granularity=granularity, seed=2)
    table = score_layers(statistics[granularity], score, seed=2)
    mask = keep_most_salient(table, 0.5)
    for row, kept in zip(table.values, mask.kept, strict=True):
        assert int((~kept).sum()) == len(table.layers) // 2
        assert row[~kept].max() <= row[kept].min()
    merged = merge(vectors, recipe, trace_layers(model, granularity))
    by_hand = merge(vectors, recipe.replace(ratio=0.0), layers[granularity], mask=mask)
    assert all(torch.equal(tensor, by_hand[name]) for name, tensor in merged.items())


@EVERY_SCORE
def test_a_score_says_what_it_is_in_a_line(score):
    assert describe_scores([score])[score].endswith(".")

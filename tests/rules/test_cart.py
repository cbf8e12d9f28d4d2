import numpy as np
import pytest
import torch
from _helpers.golden import golden_error, golden_vectors
from _helpers.small_matrices import SHAPES, as_floats, assert_near, merged_stack, random_stack, vectors_of

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules import MergeContext
from lwptv_lightning.rules.cart import CART


def test_equals_the_reference():
    assert golden_error(merge(golden_vectors("main"), MergeRecipe("cart")), "cart.official_8") < 1e-5


def loop_low_rank(matrix, ratio):
    """The projection on the leading eigenvectors of the smaller Gram matrix, one after the other."""
    if matrix.shape[0] > matrix.shape[1]:
        return loop_low_rank(matrix.T, ratio).T
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    total = np.zeros_like(matrix)
    for index in np.argsort(-values)[: max(1, int(ratio * len(matrix)))]:
        total += np.outer(vectors[:, index], vectors[:, index] @ matrix)
    return total


def loop_cart(matrices, ratio, scale):
    mean = sum(matrices) / len(matrices)
    return mean + scale * sum(loop_low_rank(matrix - mean, ratio) for matrix in matrices)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("tasks", "ratio", "scale"), [(3, 0.12, 2.0), (8, 0.16, 1.5), (20, 0.32, 1.9), (3, 0.5, -1.0)])
def test_adds_what_tasks_have_of_their_own_at_low_rank(shape, tasks, ratio, scale):
    stack = random_stack(tasks, shape)
    expected = loop_cart(as_floats(stack), ratio, scale)
    rule = CART(rank_ratio=ratio, scale=scale)
    assert_near(merged_stack(stack, rule), expected)
    np.testing.assert_allclose(merged_stack(stack.double(), rule, dtype=torch.float64), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_of_matrices_that_lack_full_rank_no_direction_is_made_up(shape):
    stack = random_stack(4, shape, rank=1)
    expected = loop_cart(as_floats(stack), 0.9, 2.0)
    assert_near(merged_stack(stack, CART(rank_ratio=0.9)), expected)


def test_the_recipe_scale_multiplies_all_of_it():
    stack = random_stack(3, (6, 4))
    result = merge(vectors_of({"mlp.fc1.weight": stack}), MergeRecipe("cart", 0.5))["mlp.fc1.weight"]
    assert_near(result, 0.5 * loop_cart(as_floats(stack), 0.12, 2.0))


@pytest.mark.parametrize("ratio", [0, 1])
def test_all_ranks_and_none_are_the_average(ratio):
    stack = random_stack(4, (6, 9))
    average = merged_stack(stack, "simple_average")
    assert torch.equal(merged_stack(stack, CART(rank_ratio=ratio)), average)
    assert_near(CART(rank_ratio=ratio).parts(stack.clone(), context(4)).sum(0), average, 1e-6)


def context(tasks, name="mlp.fc1.weight"):
    return MergeContext(name, tuple("abcdefgh"[:tasks]))


@pytest.mark.parametrize(("ratio", "size", "rank"), [(0.29, 100, 29), (0.28, 25, 7), (0.12, 16, 1), (0.01, 9, 1)])
def test_counts_what_the_ratio_says(ratio, size, rank):
    stack = random_stack(2, (size, size))
    difference = CART(rank_ratio=ratio, scale=1.0).parts(stack.clone(), context(2))[0].double() - stack[0] / 2
    assert int(torch.linalg.matrix_rank(difference, rtol=1e-4)) == rank


def test_one_task_stays_what_it_is():
    stack = random_stack(1, (6, 4))
    assert torch.equal(merged_stack(stack, "cart"), stack[0])


def test_two_tasks_are_averaged_and_planning_says_so_once():
    stack = random_stack(2, (6, 4))
    with pytest.warns(UserWarning, match="cart of two tasks is their plain average") as told:
        result = merged_stack(stack, CART(rank_ratio=0.4, scale=1.7))
    assert len(told) == 1
    assert_near(result, stack.mean(0), 1e-6)


def test_parts_of_two_tasks_may_be_pruned_without_a_doubt():
    stack = random_stack(2, (6, 4))
    recipe = MergeRecipe("cart", prune_on="parts", coefficients={"task0": {"*": 1}, "task1": {"*": 0}})
    result = merge(vectors_of({"mlp.fc1.weight": stack}), recipe)["mlp.fc1.weight"]
    own = as_floats(stack)
    assert_near(result, own[0] / 2 + 2 * loop_low_rank((own[0] - own[1]) / 2, 0.12))


def test_equal_tasks_stay_what_they_are():
    stack = random_stack(1, (6, 4)).repeat(7, 1, 1)
    assert_near(merged_stack(stack, "cart"), stack[0], 1e-7)


def test_a_zero_task_brings_the_others_mean_back_with_the_other_sign():
    stack = random_stack(3, (6, 4))
    stack[1] = 0
    own = as_floats(stack)
    assert_near(merged_stack(stack, "cart"), loop_cart(own, 0.12, 2.0))
    part = CART().parts(stack.clone(), context(3))[1]
    assert_near(part, 2 * loop_low_rank(-sum(own) / 3, 0.12))


def test_parts_add_up_to_the_merge():
    stack = random_stack(5, (6, 9))
    parts = CART(rank_ratio=0.5).parts(stack.clone(), context(5))
    assert parts.shape == stack.shape
    assert_near(parts.sum(0), merged_stack(stack, CART(rank_ratio=0.5)))


def test_a_pointwise_convolution_is_a_matrix_and_others_are_averaged():
    stack = random_stack(3, (6, 4))
    merged = merged_stack(stack, "cart")
    assert_near(merged_stack(stack[..., None, None], "cart", "layer1.0.conv1.weight")[..., 0, 0], merged)
    for name, shape in {
        "blocks.0.mlp.dw.weight": (3, 4, 3, 3),
        "blocks.0.attn.norm.weight": (5,),
        "head.weight": (6, 4),
    }.items():
        stack = torch.randn(3, *shape)
        torch.testing.assert_close(merged_stack(stack, "cart", name), stack.mean(0))


LAYERS = (
    "visual.transformer.resblocks.2.mlp.0.weight",
    "visual.transformer.resblocks.0.attn.in_proj_weight",
    "transformer.resblocks.0.mlp.c_fc.weight",
    "blocks.0.attn.qkv.weight",
    "blocks.0.mlp.fc2.weight",
    "stages.1.blocks.0.xca.qkv.weight",
    "blocks.0.mlp_tokens.fc1.weight",
    "layers.0.attention.q_proj.weight",
    "vit.encoder.layer.0.attention.attention.query.weight",
    "vit.encoder.layer.0.intermediate.dense.weight",
    "bert.encoder.layer.0.attention.self.value.weight",
    "bert.encoder.layer.0.attention.output.dense.weight",
    "bert.encoder.layer.0.output.dense.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.decoder.layers.0.fc1.weight",
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
    "transformer.layer.0.ffn.lin1.weight",
    "encoder.layers.0.linear1.weight",
)
OTHERS = (
    "text_projection",
    "head.weight",
    "visual.positional_embedding",
    "embeddings.word_embeddings.weight",
    "model.embed_tokens.weight",
    "lm_head.weight",
    "pooler.dense.weight",
    "classifier.dense.weight",
    "fc1.weight",
    "layers.0.blocks.0.attn.relative_position_bias_table",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "layers.0.downsample.reduction.weight",
)


def test_takes_the_linear_layers_of_blocks_whatever_they_are_called():
    assert [name for name in LAYERS if not CART().treats_as_matrix(name, (6, 4), 3)] == []
    assert [name for name in OTHERS if CART().treats_as_matrix(name, (6, 4), 3)] == []
    assert all(CART(include=("*",)).treats_as_matrix(name, (6, 4), 3) for name in (*LAYERS, *OTHERS))
    for rule in (CART(exclude=("*",)), CART(include=("*",), exclude=("*",)), CART(include=())):
        assert not any(rule.treats_as_matrix(name, (6, 4), 3) for name in LAYERS)
    assert not CART(exclude=("layer1.*",)).treats_as_matrix("layer1.0.conv1.weight", (6, 4, 1, 1), 3)


@pytest.mark.parametrize("given", [{"rank_ratio": 1.1}, {"rank_ratio": -0.1}, {"scale": float("inf")}])
def test_refuses_what_is_out_of_range(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        CART(**given)

import numpy as np
import pytest
import torch
from _helpers.golden import golden_error, golden_output, golden_vectors, largest_error
from _helpers.small_matrices import as_floats, assert_near, merged_stack, random_stack, vectors_of

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.wudi import WUDI


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule="wudi"))
    expected = golden_output("wudi.official")
    assert largest_error(result, expected) < 1e-6
    vectors = golden_vectors("main")
    for name in vectors.names:
        moves = not torch.equal(expected[name], vectors.base(name))
        assert moves != torch.equal(result[name], vectors.base(name)), name


def disturbance(merged, matrices):
    """The sum over tasks of ``|(X - D) D^T|^2 / |D|^2``, a zero task left out."""
    losses = [((merged - matrix) @ matrix.T).square().sum() / matrix.square().sum() for matrix in matrices]
    return sum(loss for loss, matrix in zip(losses, matrices, strict=True) if matrix.any())


def optimised(matrices, steps, lr):
    """Let autograd and torch's Adam find the matrix."""
    merged = matrices.sum(0).requires_grad_()
    adam = torch.optim.Adam([merged], lr=lr)
    for _ in range(steps):
        adam.zero_grad()
        disturbance(merged, matrices).backward()
        adam.step()
    return merged.detach()


@pytest.mark.parametrize(("steps", "lr"), [(1, 1e-3), (20, 1e-2), (300, 1e-5)])
@pytest.mark.parametrize("shape", [(3, 4), (6, 2), (5, 5), (1, 12)])
@pytest.mark.parametrize("tasks", [2, 4])
def test_descends_as_autograd_and_adam_do(steps, lr, shape, tasks):
    stack = random_stack(tasks, shape)
    expected = optimised(stack.double(), steps, lr)
    assert_near(merged_stack(stack, WUDI(steps=steps, lr=lr)), expected, 1e-5)


def test_disturbs_the_tasks_less_than_their_sum_does():
    stack = random_stack(3, (6, 6))
    merged = merged_stack(stack, WUDI(steps=500, lr=1e-2))
    assert disturbance(merged, stack) < 0.5 * disturbance(stack.sum(0), stack)


def test_a_zero_task_takes_no_part():
    stack = random_stack(3, (4, 5))
    stack[1] = 0
    rule = WUDI(lr=1e-3)
    assert_near(merged_stack(stack, rule), merged_stack(stack[[0, 2]], rule), 1e-6)


def test_no_steps_give_the_sum():
    stack = random_stack(3, (4, 5))
    torch.testing.assert_close(merged_stack(stack, WUDI(steps=0)), stack.sum(0))


def test_one_task_is_kept():
    stack = random_stack(1, (4, 5))
    assert torch.equal(merged_stack(stack, WUDI(lr=1e-2)), stack[0])


def test_a_step_has_the_length_of_the_learning_rate():
    stack = 1e-3 * random_stack(2, (4, 5))
    moved = (merged_stack(stack, WUDI(steps=1, lr=1e-4)) - stack.sum(0)).abs()
    assert_near(moved / 1e-4, torch.ones_like(moved), 0.01)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_needs_no_autograd(mode):
    stack = random_stack(2, (4, 5))
    expected = merged_stack(stack, WUDI(steps=5, lr=1e-2))
    with mode():
        assert torch.equal(merged_stack(stack, WUDI(steps=5, lr=1e-2)), expected)


@pytest.mark.parametrize(
    "name",
    [
        "visual.transformer.resblocks.0.attn.in_proj_weight",
        "visual.transformer.resblocks.0.attn.out_proj.weight",
        "visual.transformer.resblocks.0.mlp.c_fc.weight",
        "visual.transformer.resblocks.0.mlp.c_proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
    ],
)
def test_linear_layers_of_transformers_are_merged_by_default(name):
    stack = random_stack(2, (4, 4))
    assert merged_stack(stack, "wudi", name).any()
    assert not merged_stack(stack, WUDI(include=("other",)), name).any()


@pytest.mark.parametrize("name", ["head.weight", "text_projection", "pos_embed", "blocks.0.mlp.0.weight", "fc.weight"])
def test_other_tensors_stay_at_the_base_by_default(name):
    stack = random_stack(2, (4, 4))
    assert not merged_stack(stack, "wudi", name).any()
    assert merged_stack(stack, WUDI(include=("*",)), name).any()


def test_only_matrices_are_merged():
    stacks = {"attn.proj.weight": random_stack(2, (2, 3, 3)), "mlp.fc1.weight": random_stack(2, (4,))}
    result = merge(vectors_of(stacks), MergeRecipe(rule=WUDI(include=("*",))))
    assert not any(tensor.any() for tensor in result.values())


def test_a_task_that_is_alone_is_kept_to_the_bit():
    stack = random_stack(3, (4, 5))
    stack[:2] = 0
    assert torch.equal(merged_stack(stack, WUDI(lr=1e-2)), stack[2])


MATRICES = ("*.weight", "*_weight", "*positional_embedding", "*rel_pos_table")


@pytest.mark.parametrize("chosen", [{}, {"include": ("*",), "exclude": ("text_*",)}, {"include": MATRICES}], ids=str)
@pytest.mark.parametrize("prune_on", ["task_vectors", "parts"])
def test_the_closed_form_equals_the_reference(chosen, prune_on):
    recipe = MergeRecipe({"name": "wudi", "solver": "closed_form", **chosen}, prune_on=prune_on)
    assert golden_error(merge(golden_vectors("main"), recipe), "wudi_closed.mr") < 1e-5


@pytest.mark.parametrize("shape", [(3, 4), (6, 2), (3, 30), (1, 5)])
@pytest.mark.parametrize("tasks", [2, 8, 20])
def test_the_closed_form_is_the_shortest_that_disturbs_the_tasks_least(shape, tasks):
    stack = torch.linspace(0.5, 2, tasks)[:, None, None] * random_stack(tasks, shape)
    # One linear system for all tasks, by numpy's least squares.
    units = [matrix / np.linalg.norm(matrix) for matrix in as_floats(stack)]
    goals = [matrix @ unit.T for matrix, unit in zip(as_floats(stack), units, strict=True)]
    solved = np.linalg.lstsq(np.concatenate(units), np.concatenate(goals, axis=1).T, rcond=None)[0].T
    result = merged_stack(stack, WUDI(solver="closed_form", rtol=0))
    assert_near(result / abs(solved).max(), solved / abs(solved).max())
    assert disturbance(result, stack) <= disturbance(merged_stack(stack, WUDI(lr=1e-2)), stack)


def test_a_zero_task_takes_no_part_in_the_closed_form():
    stack, rule = random_stack(3, (4, 5)), WUDI(solver="closed_form")
    stack[1] = 0
    assert_near(merged_stack(stack, rule), merged_stack(stack[[0, 2]], rule), 1e-6)
    assert torch.equal(merged_stack(stack[:2], rule), stack[0])
    assert not merged_stack(torch.zeros(2, 4, 5), rule).any()


@pytest.mark.parametrize("solver", ["adam", "closed_form"])
@pytest.mark.parametrize("others", [None, "base", "mean"])
def test_what_becomes_of_other_tensors(solver, others):
    stacks = {"norm.weight": random_stack(2, (4,)), "head.weight": random_stack(2, (4, 3))}
    recipe = MergeRecipe(WUDI(solver=solver, include=("*",), exclude=("head*",), others=others))
    averages = others == "mean" or (others is None and solver == "closed_form")
    for fields in ({}, {"prune_on": "parts"}) if solver == "closed_form" else ({},):
        with pytest.warns(UserWarning, match="rule 'wudi' treated 0 of 2"):
            result = merge(vectors_of(stacks), recipe.replace(**fields))
        for name, stack in stacks.items():
            assert_near(result[name], stack.mean(0) if averages else torch.zeros_like(stack[0]), 1e-6)


def test_only_the_closed_form_has_parts():
    with pytest.raises(ValueError, match=r"'wudi' is none: its optimiser .*; solver='closed_form' is one"):
        MergeRecipe("wudi", prune_on="parts")
    assert WUDI(solver="closed_form").is_sum
    stack = random_stack(3, (4, 6))
    coefficients = {"task0": {"*": 1.0}, "task1": {"*": 0.0}, "task2": {"*": 0.5}}
    recipe = MergeRecipe(WUDI(solver="closed_form"), prune_on="parts", coefficients=coefficients)
    grams = [matrix.T @ matrix / np.linalg.norm(matrix) ** 2 for matrix in as_floats(stack)]
    inverse = np.linalg.pinv(sum(grams))
    parts = [matrix @ gram @ inverse for matrix, gram in zip(as_floats(stack), grams, strict=True)]
    assert_near(merge(vectors_of({"mlp.fc1.weight": stack}), recipe)["mlp.fc1.weight"], parts[0] + parts[2] / 2)


@pytest.mark.parametrize(("solver", "setting"), [("adam", "rtol"), ("closed_form", "steps"), ("closed_form", "lr")])
def test_a_solver_refuses_what_is_of_the_other(solver, setting):
    with pytest.raises(ValueError, match=f"{setting} is of solver='.*; '{solver}' has none"):
        WUDI(solver=solver, **{setting: 1 if setting == "steps" else 1e-3})
    assert WUDI(solver=solver, steps=300, lr=1e-5).solver == solver


@pytest.mark.parametrize("arguments", [{"steps": -1}, {"lr": 0}, {"lr": -1e-5}, {"solver": "sgd"}, {"others": "sum"}])
def test_refuses_settings_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        WUDI(**arguments)

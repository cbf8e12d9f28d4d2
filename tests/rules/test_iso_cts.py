import numpy as np
import pytest
import torch
from _helpers.golden import golden_vectors
from _helpers.small_matrices import SHAPES, as_floats, assert_near, merged_stack, polar, random_stack

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.iso_cts import IsoCTS

FRACTIONS = [0, 0.25, 0.5, 0.8, 1]


def loop_iso_cts(matrices, fraction):
    """Fill the columns of U, the values and the rows of V one triplet after the other."""
    size, tasks = min(matrices[0].shape), len(matrices)
    own = round((size - int(size * fraction)) / tasks)
    while own * tasks > size:
        own -= 1
    common = size - own * tasks
    left, values, right = np.linalg.svd(sum(matrices), full_matrices=False)
    columns, spectrum, rows = [], [], []
    for matrix in matrices:
        beyond = matrix.copy()
        for index in range(common):
            beyond -= np.outer(left[:, index], left[:, index] @ matrix)
        own_left, own_values, own_right = np.linalg.svd(beyond, full_matrices=False)
        for index in range(own):
            columns.append(own_left[:, index])
            spectrum.append(own_values[index])
            rows.append(own_right[index])
    for index in range(common):
        columns.append(left[:, index])
        spectrum.append(values[index])
        rows.append(right[index])
    return np.mean(spectrum) * polar(np.stack(columns, axis=1)) @ polar(np.stack(rows))


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_joins_common_and_own_directions(fraction, shape, tasks):
    stack = random_stack(tasks, shape)
    result = merged_stack(stack, IsoCTS(common_fraction=fraction))
    assert_near(result, loop_iso_cts(as_floats(stack), fraction), 2e-5)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_matches_the_written_out_rule_on_a_model(fraction):
    vectors = golden_vectors("main")
    result = merge(vectors, MergeRecipe(rule=IsoCTS(common_fraction=fraction, exclude=("text_projection",))))
    for name in vectors.names:
        stack = vectors.stack(name)
        is_merged = stack.dim() == 3 and name != "text_projection"
        change = loop_iso_cts(as_floats(stack), fraction) if is_merged else stack.mean(0)
        assert_near(result[name], vectors.base(name) + torch.as_tensor(change), 1e-5)


@pytest.mark.parametrize(
    ("size", "tasks", "fraction", "expected"),
    [
        (32, 4, 0.8, (24, 2)),  # (32 - 25) / 4 = 1.75
        (10, 4, 0, (2, 2)),  # 2.5 is rounded to the even 2
        (6, 4, 0, (2, 1)),  # 1.5 is rounded to the even 2, for which there is no room
        (9, 4, 0.8, (9, 0)),
        (8, 3, 0.5, (5, 1)),
        (3, 5, 0, (3, 0)),
        (1, 1, 0, (0, 1)),
        (10, 1, 1, (10, 0)),
    ],
)
def test_sizes_are_rounded_half_to_even_and_never_negative(size, tasks, fraction, expected):
    assert IsoCTS(common_fraction=fraction)._sizes(size, tasks) == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_with_the_whole_space_in_common_it_is_iso_c(shape):
    stack = random_stack(3, shape)
    assert_near(merged_stack(stack, IsoCTS(common_fraction=1)), merged_stack(stack, "iso_c"), 1e-6)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_all_singular_values_are_equal(fraction):
    values = torch.linalg.svdvals(merged_stack(random_stack(2, (8, 12)), IsoCTS(common_fraction=fraction)))
    assert_near(values, values.mean().expand_as(values))


def test_a_pruned_task_adds_no_direction():
    stack = random_stack(2, (6, 6))
    stack[1] = 0
    result = merged_stack(stack, IsoCTS(common_fraction=0.5))
    # Two common directions of the sum, two of the first task, and none of the second.
    assert int(torch.linalg.matrix_rank(result, rtol=1e-5)) == 4
    left = torch.linalg.svd(stack[0]).U[:, :4]
    assert_near(left @ left.T @ result, result)


def test_residuals_that_are_rounding_add_no_direction():
    stack = random_stack(1, (6, 6), rank=2).repeat(2, 1, 1)
    result = merged_stack(stack, IsoCTS(common_fraction=0.5))
    assert int(torch.linalg.matrix_rank(result, rtol=1e-5)) == 2


@pytest.mark.parametrize("fraction", [-0.1, 1.2])
def test_refuses_what_is_no_fraction(fraction):
    with pytest.raises(ValueError, match="common_fraction"):
        IsoCTS(common_fraction=fraction)

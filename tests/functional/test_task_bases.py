import numpy as np
import pytest
import torch
from _helpers.small_matrices import as_floats, assert_near, polar, random_stack

from lwptv_lightning.functional import Triplets, decompose, task_bases, with_plain_signs


def loop_bases(triplets):
    columns = [column for task in as_floats(triplets.left) for column in task.T]
    rows = [row for task in as_floats(triplets.right) for row in task]
    return polar(np.stack(columns, axis=1)), polar(np.stack(rows))


@pytest.mark.parametrize(("shape", "tasks"), [((6, 4), 2), ((4, 9), 3), ((5, 5), 1), ((6, 4), 4)])
def test_bases_are_the_polar_factors_of_what_stands_side_by_side(shape, tasks):
    triplets = decompose(random_stack(tasks, shape)).first(min(shape) // tasks)
    bases, expected = task_bases(triplets), loop_bases(triplets)
    assert_near(bases.left, expected[0])
    assert_near(bases.right, expected[1])


def test_cores_and_matrices_change_between_the_bases():
    stack = random_stack(2, (4, 6))
    bases = task_bases(decompose(stack).first(2))
    core = bases.core(stack[1])
    assert core.dtype == torch.float64
    assert_near(core, bases.left.T @ stack[1].double() @ bases.right.T)
    assert_near(bases.of_core(core), stack[1].double() @ bases.right.T @ bases.right)


def test_blocks_are_cores_with_nothing_beside_them():
    bases = task_bases(decompose(random_stack(3, (7, 8))).first(2))
    blocks = random_stack(3, (2, 2)).double()
    assert_near(bases.of_blocks(blocks), bases.of_core(torch.block_diag(*blocks)))


def test_absent_directions_are_zero():
    stack = random_stack(3, (8, 7), rank=1)
    stack[1] = 0
    bases = task_bases(decompose(stack).first(2))
    assert bases.left.shape == (8, 6)
    assert [bool(column.any()) for column in bases.left.T] == [True, False, False, False, True, False]
    assert [bool(row.any()) for row in bases.right] == [True, False, False, False, True, False]


def test_equal_tasks_share_their_directions():
    stack = random_stack(1, (8, 7)).repeat(2, 1, 1)
    left = task_bases(decompose(stack).first(3)).left
    assert_near(left, torch.cat([decompose(stack[0]).left[:, :3] / 2**0.5] * 2, dim=1))


@pytest.mark.parametrize("flipped", [(0,), (1, 2), (0, 1, 2)])
def test_plain_signs_do_not_depend_on_the_signs_given(flipped):
    triplets = decompose(random_stack(2, (6, 4))).first(3)
    signs = torch.ones(3)
    signs[[*flipped]] = -1
    turned = Triplets(triplets.left * signs, triplets.values, triplets.right * signs[:, None])
    plain = with_plain_signs(turned)
    assert all(map(torch.equal, plain, with_plain_signs(triplets)))
    assert all(max(column.tolist(), key=abs) > 0 for column in plain.left.mT.flatten(0, 1))
    assert_near(*(each.left * each.values[:, None] @ each.right for each in (plain, triplets)))


@pytest.mark.parametrize("noise", [0.0, 1e-9, -1e-9])
def test_of_equally_large_entries_the_first_is_positive_whatever_rounding_makes_of_them(noise):
    left = torch.tensor([[0.1], [-0.7 + noise], [0.7], [0.7 - 2 * noise]], dtype=torch.float64)
    assert with_plain_signs(Triplets(left, torch.ones(1), torch.ones(1, 2))).left[1] > 0


def test_a_zero_vector_has_no_sign_and_stays():
    zero = with_plain_signs(decompose(torch.zeros(2, 4, 3)))
    assert not zero.left.any()
    assert not zero.right.any()

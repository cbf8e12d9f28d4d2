import torch
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, quick, task_rows
from hypothesis import given

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules import MergeContext
from lwptv_lightning.rules.magmax import MagMax


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule="magmax"))
    assert largest_error(result, golden_output("magmax.official_0.5")) < 1e-6


@quick
@given(task_rows())
def test_takes_the_largest_magnitude_and_the_later_of_equals(rows):
    def largest(column):
        return column[max(range(len(column)), key=lambda task: (abs(column[task]), task))]

    assert merged_row(rows, "magmax") == [largest(column) for column in zip(*rows, strict=True)]


@quick
@given(task_rows())
def test_a_task_given_twice_changes_nothing(rows):
    assert merged_row([*rows, rows[-1]], "magmax") == merged_row(rows, "magmax")


def test_each_task_has_what_is_taken_from_it():
    tau = torch.tensor([[1.0, -3.0, 2.0, 0.0], [2.0, 1.0, -2.0, 0.0]])
    made = MagMax().parts(tau, MergeContext("w", ("a", "b")))
    assert made.tolist() == [[0.0, -3.0, 0.0, 0.0], [2.0, 0.0, -2.0, 0.0]]

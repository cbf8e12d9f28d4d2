"""Tests of several processes end where one fails or all hang, and say where; as a script, this file is one of them."""

import os
import sys
import time

import pytest
from _helpers.processes import run_together

RANKS = [{"RANK": "0"}, {"RANK": "1"}]


def sleep_forever():
    time.sleep(600)


def compute_forever():
    while True:
        pass


if __name__ == "__main__":
    if sys.argv[1] == "compute":
        compute_forever()
    if os.environ["RANK"] == sys.argv[1]:
        raise ValueError("this one fails")
    sleep_forever()


@pytest.mark.parametrize("failing", ["0", "1"])
def test_where_one_fails_the_other_ends_and_the_error_is_told(failing):
    with pytest.raises(
        AssertionError, match=f"process {failing} ended with 1, (?s:.*)ValueError: this one fails"
    ) as told:
        run_together([__file__, failing], RANKS, idle=3600)
    assert str(told.value).count("was ended by the test") == 1


def test_where_all_hang_each_tells_where_it_is():
    with pytest.raises(AssertionError) as told:
        run_together([__file__, "neither"], RANKS, idle=2)
    assert str(told.value).count("was ended by the test") == 2
    assert str(told.value).count("in sleep_forever") == 2


def test_those_that_compute_forever_end_too():
    with pytest.raises(AssertionError, match="process 0 was ended by the test, (?s:.*)in compute_forever"):
        run_together([__file__, "compute"], RANKS, work=3)

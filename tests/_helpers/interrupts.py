"""Raises something at a chosen moment: at a line of some files, or where a tensor is copied to."""

import inspect
import sys
from contextlib import contextmanager
from unittest.mock import patch

import torch


class Thrown(BaseException):
    """What no code expects."""


class Moments:
    """Counts the lines, calls and returns of code in some files, and raises at one of them.

    Attributes:
        seen: How many were passed.
    """

    def __init__(self, *files):
        self.files, self.seen, self.at, self.error = files, 0, None, None

    def _trace(self, frame, event, argument):
        if not frame.f_code.co_filename.endswith(self.files):
            return None
        if event == "return" and frame.f_code.co_flags & inspect.CO_GENERATOR:
            return self._trace  # at a yield nothing is raised but by tracing, which skips the generator's handlers
        if event == "exception" and argument[0] is GeneratorExit:
            return self._trace  # a generator that is given up on has nobody whom what is raised in it would reach
        self.seen += 1
        if self.seen - 1 == self.at:
            raise self.error
        return self._trace

    @contextmanager
    def watching(self, at=None, error=None):
        """Count from 0, and raise ``error`` at the moment ``at``."""
        self.seen, self.at, self.error = 0, at, error
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before)


@contextmanager
def copies(act, at=0):
    """Call ``act(own)`` before the tensor copied to is written the ``at``-th time; yield the count, in a list."""
    real, count = torch.Tensor.copy_, [0]

    def copy_(own, *arguments, **options):
        count[0] += 1
        if count[0] - 1 == at:
            act(own)
        return real(own, *arguments, **options)

    with patch.object(torch.Tensor, "copy_", copy_):
        yield count

"""Merges with and without compiled kernels, on models that reach the borders of tiles and of blocks."""

import numpy as np
import torch

from _helpers.states import open_vectors
from lwptv_lightning import merge
from lwptv_lightning.engine import Execution

COMPILED, PLAIN = Execution(compiled=True), Execution(compiled=False)

SIZES = (0, 1, 31, 32, 33, 1023, 1024, 1025, 2100)
"""Elements of tensors around those of a tile, and of the parts in which a tile is searched."""


def normal(size, generator):
    """Values without ties."""
    return torch.randn(size, generator=generator)


def coarse(size, generator):
    """Eighths, of which there are few: equal magnitudes, zeros, and rows that cancel."""
    return torch.randint(-4, 5, (size,), generator=generator) / 8


def denormal(size, generator):
    """Values below the smallest normal number, and zeros of both signs."""
    return torch.randn(size, generator=generator) * 1e-40 * torch.randint(-1, 2, (size,), generator=generator)


KINDS = (normal, coarse, denormal)


def states(tasks, seed=0, sizes=SIZES):
    """Return a base and changes of it: each kind of values in each size; the second task undoes the first one."""
    generator = torch.Generator().manual_seed(seed)

    def state():
        return {f"{kind.__name__}{size}.weight": kind(size, generator) for kind in KINDS for size in sizes}

    # Much larger, as weights are, and so that sums of eighths stay exact.
    base, changes = {name: 16 * values for name, values in state().items()}, [state() for _ in range(tasks)]
    if tasks > 1:
        changes[1] |= {name: -values for name, values in changes[0].items() if name.startswith("coarse")}
    return base, changes


def ragged_vectors(tasks=3, base_dtype=torch.float32, dtypes=(torch.float32,), seed=0, sizes=SIZES):
    """Task vectors of such a model; the experts take turns with the dtypes."""
    base, changes = states(tasks, seed, sizes)
    base = {name: values.to(base_dtype) for name, values in base.items()}
    experts = {
        f"task{index}": {
            name: (base[name].double() + values).to(dtypes[index % len(dtypes)]) for name, values in change.items()
        }
        for index, change in enumerate(changes)
    }
    return open_vectors(base, experts)


def assert_same_models(actual, expected, note=""):
    """Check that two models are equal; zeros may differ in their sign."""
    assert actual.keys() == expected.keys()
    different = [name for name, values in expected.items() if not torch.equal(actual[name], values)]
    assert different == [], note
    assert [values.dtype for values in actual.values()] == [values.dtype for values in expected.values()]


def assert_compiled_is_plain(vectors, recipe, **options):
    """Check that kernels change nothing, and return the merged model."""
    expected = merge(vectors, recipe, execution=PLAIN, **options)
    assert_same_models(merge(vectors, recipe, execution=COMPILED, **options), expected, recipe)
    return expected


class Rows:
    """A stack in memory for kernels: rows of values that are differences already, over a base of zeros.

    Attributes:
        base: ``(n,)``.
        shape: ``(T, n)``.
    """

    def __init__(self, rows, base=None, first=0):
        self.rows = [None if row is None else torch.as_tensor(row) for row in rows]
        size = next(len(row) for row in self.rows if row is not None)
        self.base = torch.zeros(size) if base is None else base
        self.shape, self.first = (len(self.rows), size), first

    def operands(self, elements):
        """Return what `StoredStack.operands` does; the first element has the position ``first``."""
        here = slice(elements.start - self.first, elements.stop - self.first)
        return self.base[here], [None if row is None else (row[here], True) for row in self.rows]

    def only(self, task):
        """Return one row."""
        return Rows([torch.zeros(self.shape[1]) if self.rows[task] is None else self.rows[task]], self.base)


def everything(stack):
    """Return the elements of a stack."""
    return slice(stack.first, stack.first + stack.shape[1])


def sorted_magnitudes(row):
    """Sort the magnitudes of a row."""
    return np.sort(np.abs(np.asarray(row)))

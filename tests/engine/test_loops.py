"""How loops are compiled and kept on the disk."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

_loops = import_module("lwptv_lightning.engine.loops")


def doubled(x):
    return 2 * x


class Codegen:
    """What the processor is, to numba's cache."""

    def magic_tuple(self):
        return ("some processor",)


def key(function):
    return function._cache._index_key((), Codegen())


def test_a_kernel_is_kept_for_the_loops_that_are_part_of_it(monkeypatch):
    kernel = _loops.kernel(doubled)
    assert key(kernel)[-1] == _loops._version(Path(_loops.__file__).parent)
    before = key(kernel)
    monkeypatch.setattr(_loops, "_VERSION", "another")
    assert key(kernel) != before
    assert key(kernel)[:-1] == before[:-1]


def test_kernels_of_the_engine_are_kept_on_the_disk():
    for module, names in (
        ("kernels", ("combine", "vote")),
        ("ranking_kernels", ("gather", "limits")),
        ("statistics_kernel", ("statistics",)),
    ):
        for name in names:
            assert isinstance(getattr(import_module(f"lwptv_lightning.engine.{module}"), name)._cache, _loops._Cache)


def test_where_no_folder_can_be_written_to_a_kernel_is_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr(_loops._Cache._impl_class, "_locator_classes", [])
    with pytest.raises(RuntimeError):
        _loops._Cache(doubled)
    kernel = _loops.kernel(doubled)
    assert not isinstance(kernel._cache, _loops._Cache)
    assert kernel(21) == 42


def test_a_kernel_holds_no_lock_and_rounds_as_written():
    kernel = _loops.kernel(doubled)
    assert kernel.targetoptions["nogil"]
    assert not kernel.targetoptions.get("fastmath")
    assert not _loops.loop(doubled).targetoptions.get("fastmath")


def test_multiples_are_added_with_one_rounding_as_torch_does():
    generator = torch.Generator().manual_seed(0)
    base, merged = (torch.randn(257, generator=generator) for _ in range(2))
    out = np.empty(257, np.float32)
    _loops.add_to_base(base.numpy(), merged.numpy(), np.float32(0.3), out, 257)
    assert torch.equal(torch.from_numpy(out), base.clone().add_(merged, alpha=0.3))
    # A product of two float32 is exact in float64; one sum of three is not rounded twice but for rare halves.
    exact = base.double() + merged.double() * float(np.float32(0.3))
    assert (torch.from_numpy(out) == exact.float()).float().mean() > 0.99


@pytest.mark.parametrize("place", [-5, 0, 7, 10**12])
def test_a_place_of_the_tensor_is_one_of_the_tile_or_next_to_it(place):
    assert _loops.inside(place, 3) == min(max(place - 3, 0), _loops.TILE)


@pytest.mark.parametrize(
    "changed", ["program.py", "loops.py", "kernels.py", "ranking_kernels.py", "statistics_kernel.py"]
)
def test_the_version_of_kernels_is_that_of_all_files_of_which_they_are_made(changed, tmp_path):
    folder = Path(_loops.__file__).parent
    for name in ("program.py", "loops.py", *(path.name for path in folder.glob("*kernel*.py"))):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert _loops._version(tmp_path) == _loops._VERSION
    (tmp_path / changed).write_text("changed")
    assert _loops._version(tmp_path) != _loops._VERSION

"""Where and how a merge is computed changes none of its bits, and leaves torch's settings as they were."""

import subprocess
import sys
import threading
from importlib import import_module

import pytest
import torch

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.engine import CPU, Execution

_execution = import_module("lwptv_lightning.engine.execution")


def test_names_and_sizes_are_read():
    execution = Execution(device="cpu", max_memory="2KiB", block_bytes=64)
    assert (execution.device, execution.max_memory, execution.block_bytes) == (CPU, 2048, 64)
    assert Execution() == Execution(device=torch.device("cpu"))


@pytest.mark.parametrize("option", ["max_memory", "block_bytes"])
@pytest.mark.parametrize("size", ["many", 0, "-1MB", True])
def test_a_size_that_is_none_is_refused(option, size):
    with pytest.raises(ValueError, match=f"{option} must be a number of bytes"):
        Execution(**{option: size})


def test_a_device_that_is_none_is_refused():
    with pytest.raises(ValueError, match="gpu"):
        Execution(device="gpu")


THREADED = ["ties", "dare_ties", "breadcrumbs", "consensus_ties", "iso_c", "tsv_m", "knots_ties", "wudi", "emr", "pcb"]


@pytest.mark.parametrize("rule", THREADED)
def test_any_number_of_threads_gives_the_same_bits_with_kernels_and_without(rule, use_threads):
    generator = torch.Generator().manual_seed(0)
    shapes = {"stem.weight": (3, 700), "blocks.0.weight": (64, 48), "blocks.1.weight": (48, 64), "blocks.1.bias": (48,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tasks = {
        task: {name: values + 0.1 * torch.randn(values.shape, generator=generator) for name, values in base.items()}
        for task in "abc"
    }
    vectors, recipe = TaskVectors.open(base, tasks), MergeRecipe(rule, ratio=0.3, granularity="tensor")
    expected = merge(vectors, recipe, execution=Execution(compiled=False))
    for threads in (1, 2, 3):
        use_threads(threads)
        for execution in (Execution(compiled=False, block_bytes=1000), Execution(compiled=True)):
            merged = merge(vectors, recipe, execution=execution)
            assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items()), (threads, execution)
        assert torch.get_num_threads() == threads


def test_kernels_are_used_where_asked_for_or_where_they_pay():
    like, small, large = torch.empty(0), 1 << 10, 1 << 30
    assert Execution(compiled=True).compiles(small, like)
    assert Execution().compiles(large, like)
    assert not Execution().compiles(small, like)
    assert not Execution(compiled=False).compiles(large, like)
    for other in (torch.empty(0, dtype=torch.float64), torch.empty(0, device="meta")):
        assert not Execution(compiled=True).compiles(large, other)


@pytest.fixture
def _without_numba(monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "numba"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "numba", None)  # an import fails
    for name in ("loops", "kernels", "ranking_kernels", "statistics_kernel"):
        monkeypatch.delitem(sys.modules, f"lwptv_lightning.engine.{name}", raising=False)
        monkeypatch.delattr(f"lwptv_lightning.engine.{name}", raising=False)
    monkeypatch.setattr(_execution, "kernels_exist", lambda: False)
    monkeypatch.setattr(_execution, "_PAYS", 0)


@pytest.mark.usefixtures("_without_numba")
@pytest.mark.parametrize("rule", ["task_arithmetic", "ties", "breadcrumbs", "dare_ties"])
def test_without_numba_torch_merges(rule, vectors):
    with pytest.raises(ImportError):
        import_module("lwptv_lightning.engine.kernels")
    recipe = MergeRecipe(rule, ratio=0.5)
    expected = merge(vectors, recipe, execution=Execution(compiled=False))
    merged = merge(vectors, recipe)
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())


@pytest.mark.usefixtures("_without_numba")
def test_without_numba_kernels_cannot_be_asked_for():
    with pytest.raises(ImportError, match="pip install numba"):
        Execution(compiled=True)


@pytest.mark.parametrize("rule", ["ties", "breadcrumbs", "iso_c", "emr", "pcb"])
def test_blocks_of_any_size_give_the_same_bits(rule, vectors):
    recipe = MergeRecipe(rule, ratio=0.5, granularity="tensor")
    expected = merge(vectors, recipe)
    for block_bytes in (1, 100, 10_000):
        merged = merge(vectors, recipe, execution=Execution(block_bytes=block_bytes))
        assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())


# Each line is what a user's script may have done before; the newer settings forbid to ask for the older one.
SETTINGS = [
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.backends.mkldnn.fp32_precision = 'bf16'; torch.backends.cuda.matmul.fp32_precision = 'tf32'",
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_products_are_exact_whatever_a_script_has_set_and_its_setting_stays(setting):
    program = f"""
import sys
import torch
from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.engine import Execution

def state():
    backends = torch.backends
    return backends.fp32_precision, backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision

{setting}
before = state()
with Execution().exact():
    assert set(state()[1:]) <= {{"ieee", "none"}}, state()
    with Execution().exact():
        pass
    assert set(state()[1:]) <= {{"ieee", "none"}}, state()
assert state() == before, (state(), before)
base = {{"w": torch.zeros(8, 8)}}
vectors = TaskVectors.open(base, {{task: {{"w": torch.randn(8, 8)}} for task in "ab"}})
merge(vectors, MergeRecipe("iso_c", ratio=0.5))
assert state() == before, (state(), before)
assert "numba" not in sys.modules, "a small merge has loaded it"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def product_precision():
    return torch.backends.mkldnn.matmul.fp32_precision


def test_threads_share_the_guard_and_the_last_one_out_puts_the_setting_back():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    lowered = product_precision()
    inside, leave = threading.Barrier(2), threading.Event()
    found = []

    def hold():
        with Execution().exact():
            inside.wait()
            leave.wait()
            found.append(product_precision())

    try:
        other = threading.Thread(target=hold)
        other.start()
        inside.wait()
        with Execution().exact():
            pass
        leave.set()
        other.join()
        assert found == ["ieee"]
        assert product_precision() == lowered
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("rule", ["knots_ties", "iso_c", "tsv_m", "wudi", "ties"])
def test_a_merge_inside_autocast_is_the_one_outside(rule):
    generator = torch.Generator().manual_seed(0)
    base = {"blocks.0.mlp.fc1.weight": torch.zeros(12, 8)}
    tasks = {task: {name: torch.randn(12, 8, generator=generator) for name in base} for task in "ab"}
    vectors = TaskVectors.open(base, tasks)
    expected = merge(vectors, MergeRecipe(rule, ratio=0.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = merge(vectors, MergeRecipe(rule, ratio=0.0))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

"""The bits that `merge` returns, for every rule and every kind of pruning, on one process and on two.

``python tests/conformance/test_digests.py --write`` writes them to ``tests/data/digests.json`` anew. Do so only where a
change means to change a result, and say in the change which and why. Libraries of linear algebra round differently on
other processors, which a probe tells; there the size of each result is compared instead of its bits.
"""

import functools
import hashlib
import json
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from _helpers.processes import launch, report

from lwptv_lightning import LiNeS, MergeRecipe, TaskVectors, merge
from lwptv_lightning.engine import ALONE, Ranks
from lwptv_lightning.rules import RULES

STORED = Path(__file__).parents[1] / "data" / "digests.json"
TASKS = ("a", "b", "c")
SHAPES = {
    "stem.conv.weight": (6, 3, 3, 3),
    "stem.conv.bias": (6,),
    "stem.bn.weight": (6,),
    "stem.bn.bias": (6,),
    "stem.bn.running_mean": (6,),
    "stem.bn.running_var": (6,),
    "table.weight": (180_000,),  # larger than a block
    "blocks.0.norm.weight": (8,),
    "blocks.0.attn.qkv.weight": (24, 8),
    "blocks.0.attn.qkv.bias": (24,),
    "blocks.0.attn.proj.weight": (8, 8),
    "blocks.0.mlp.fc1.weight": (16, 8),
    "blocks.0.mlp.fc2.weight": (8, 16),
    "blocks.1.norm.weight": (8,),
    "blocks.1.attn.qkv.weight": (24, 8),
    "blocks.1.attn.qkv.bias": (24,),
    "blocks.1.attn.proj.weight": (8, 8),
    "blocks.1.mlp.fc1.weight": (16, 8),
    "blocks.1.mlp.fc2.weight": (8, 16),
    "squeeze.weight": (4, 8, 1, 1),
    "head.weight": (2, 8),
    "scale": (),
    "stem.conv.empty": (0, 2),
}
HALF = {"blocks.1.attn.proj.weight": torch.bfloat16, "squeeze.weight": torch.float16}
KINDS = {
    "plain": {},
    "layers": {"ratio": 0.5},
    "blocks": {"ratio": 0.5, "granularity": "block"},
    "elements": {"elements": {"ratio": 0.5}},
    "parts": {"ratio": 0.5, "prune_on": "parts"},
    "LiNeS": {"layer_scaling": LiNeS(alpha=None)},
    "coefficients": {"prune_on": "parts"},
}
COEFFICIENTS = {
    "a": {"*.attn.*": 0.0, "*": 0.3},
    "b": {"squeeze": 0.0, "*.qkv": 0.7, "*": 1.1},
    "c": {"stem*": 0.0, "squeeze": 0.0, "*": 0.25},
}
CASES = [
    (rule, kind)
    for rule in sorted(RULES)
    for kind, fields in KINDS.items()
    if "prune_on" not in fields or RULES[rule].has_parts()
]


def tensor(shape, seed):
    """Values whose sums round, made by arithmetic that is the same on every processor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-5000, 5001, shape, generator=generator).to(torch.float32) / 1000


def state(seed, size):
    """A model's tensors, or changes of them; variances stay above 0."""
    values = {name: size * tensor(shape, 100 * seed + number) for number, (name, shape) in enumerate(SHAPES.items())}
    values["stem.bn.running_var"] = values["stem.bn.running_var"].abs()
    return values


@functools.cache
def open_vectors(tasks_of_rule):
    base = state(0, 1.0)
    tasks = {}
    for seed, task in enumerate(TASKS[:tasks_of_rule], start=1):
        change = state(seed, 0.125)
        tasks[task] = {name: (base[name] + change[name]).to(HALF.get(name, torch.float32)) for name in SHAPES}
    counter = {"stem.bn.num_batches_tracked": torch.tensor(7)}
    half_base = {name: value.to(HALF.get(name, torch.float32)) for name, value in base.items()}
    return TaskVectors.open(half_base | counter, {task: tuned | counter for task, tuned in tasks.items()})


def data_statistics(rule, vectors):
    """What the rule would have been given of data, or None."""
    needs = RULES[rule].needs
    if not needs:
        return None

    def of_task(seed):
        if needs == "fisher":
            return {name: tensor(shape, seed).abs() + 0.25 for name, shape in SHAPES.items()}
        matrices = {name: shape for name, shape in SHAPES.items() if len(shape) == 2 and shape[0]}
        rows = {name: tensor(shape[1:], seed) for name, shape in matrices.items()}
        return {name: torch.diag(row.abs() + 0.5) + row[:, None] * row / 10 for name, row in rows.items()}

    return {task: of_task(seed) for seed, task in enumerate(vectors.tasks, start=50)}


def digest(tensors):
    hashed = hashlib.sha256()
    for name, value in tensors.items():
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:24]


def size_of(tensors):
    return sum(float(value.double().abs().sum()) for value in tensors.values())


def merge_all(ranks):
    """Return each case's digest and size."""
    found = {}
    for rule, kind in CASES:
        vectors = open_vectors(2 if rule == "nuslerp" else 3)
        statistics = data_statistics(rule, vectors)
        fields = dict(KINDS[kind])
        if kind == "coefficients":
            fields[kind] = {task: COEFFICIENTS[task] for task in vectors.tasks}
        merged = merge(vectors, MergeRecipe(rule, **fields), statistics=statistics, ranks=ranks)
        found[f"{rule} {kind}"] = [digest(merged), size_of(merged)]
    return found


def probe():
    """Return what tells whether this processor's libraries round as those did that wrote the file."""
    matrix = tensor((40, 30), 1)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    vector = tensor((70_001,), 2)
    results = [matrix.T @ matrix, left, values, right, vector.sum(), vector.double().exp(), vector.tanh()]
    return digest(dict(enumerate(results)))


def measure(ranks=ALONE):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="task .* equals the base")
        try:
            return {"probe": probe(), "cases": merge_all(ranks)}
        finally:
            torch.set_num_threads(threads)


def work(folder):
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    report(folder, rank, measure(Ranks.current()))
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        measured = measure()
        lines = [f"{json.dumps(case)}: {json.dumps(found)}" for case, found in measured["cases"].items()]
        text = ",\n".join(lines)
        STORED.write_text(f'{{"probe": "{measured["probe"]}", "cases": {{\n{text}\n}}}}\n')
    else:
        work(Path(sys.argv[1]))


@pytest.fixture(scope="module")
def stored():
    return json.loads(STORED.read_text())


@pytest.fixture(scope="module")
def alone():
    return measure()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return launch(__file__, tmp_path_factory.mktemp("digests"), ranks=2)


def test_the_file_has_every_case_and_no_other(stored):
    assert list(stored["cases"]) == [f"{rule} {kind}" for rule, kind in CASES]


@pytest.mark.parametrize(("rule", "kind"), CASES)
def test_one_process_gives_the_stored_bits(rule, kind, stored, alone):
    (bits, size), (found_bits, found_size) = (each["cases"][f"{rule} {kind}"] for each in (stored, alone))
    assert found_size == pytest.approx(size, rel=1e-4)
    if alone["probe"] == stored["probe"]:
        assert found_bits == bits


@pytest.mark.parametrize(("rule", "kind"), CASES)
def test_two_processes_give_the_bits_of_one(rule, kind, alone, together):
    expected = alone["cases"][f"{rule} {kind}"]
    assert [each["cases"][f"{rule} {kind}"] for each in together] == [expected] * 2

"""How rules are given what they merge: in blocks, task by task or whole, with their statistics and coefficients."""

from dataclasses import dataclass
from importlib import import_module

import pytest
import torch
from _helpers.kernels import COMPILED, PLAIN, assert_compiled_is_plain, ragged_vectors
from _helpers.states import SHAPES, noise, open_vectors, random_state

from lwptv_lightning import (
    LayerMask,
    LiNeS,
    Merge,
    MergeRecipe,
    MergeRule,
    TaskVectors,
    layers_from_names,
    merge,
    save_merged,
)
from lwptv_lightning.engine import Execution, Memo
from lwptv_lightning.functional import sum_tasks, trim_

_combine = import_module("lwptv_lightning.merging.combine")

SEEN = []


@dataclass(frozen=True, kw_only=True)
class Looks(MergeRule):
    """Adds up the tasks, and notes what it was given."""

    name = "looks"
    published_scale = 1.0
    unit = "element"

    def combine(self, tau, context):
        SEEN.append((context.name, context.start, tuple(tau.shape), context.statistics))
        return tau.sum(0)


@dataclass(frozen=True, kw_only=True)
class LooksAtWhole(Looks):
    """Does so with whole tensors."""

    unit = "tensor"


@dataclass(frozen=True, kw_only=True)
class LooksAtTasks(MergeRule):
    """Does so task by task."""

    name = "looks_at_tasks"
    published_scale = 1.0
    unit = "task"

    def parts(self, tau, context):
        SEEN.append((context.name, context.tasks, tuple(tau.shape), context.statistics))
        return tau


@pytest.fixture(autouse=True)
def _nothing_seen():
    SEEN.clear()


def of_tensor(name):
    return [seen[1:] for seen in SEEN if seen[0] == name]


def in_blocks_of(elements, tasks=3):
    return Execution(block_bytes=elements * tasks * 4)


def test_a_rule_of_elements_is_given_blocks_and_their_place(vectors):
    merge(vectors, MergeRecipe(Looks()), execution=in_blocks_of(4))
    assert [seen[:2] for seen in of_tensor("fc.weight")] == [
        (0, (3, 4)),
        (4, (3, 4)),
        (8, (3, 4)),
        (12, (3, 3)),
    ]


def test_a_rule_of_tensors_is_given_whole_ones_whatever_the_block(vectors):
    merge(vectors, MergeRecipe(LooksAtWhole()), execution=in_blocks_of(4))
    assert [seen[:2] for seen in of_tensor("fc.weight")] == [(0, (3, 5, 3))]
    assert [seen[:2] for seen in of_tensor("gain")] == [(0, (3,))]


def test_a_rule_of_tasks_is_given_one_after_the_other_and_no_pruned_one(vectors):
    layers = layers_from_names(vectors.names)
    kept = torch.tensor([[True] * 4, [name != "fc" for name in layers.names], [True] * 4])
    merged = merge(vectors, MergeRecipe(LooksAtTasks()), mask=LayerMask(vectors.tasks, layers.names, kept))
    assert [seen[:2] for seen in of_tensor("fc.weight")] == [(("a",), (1, 5, 3)), (("c",), (1, 5, 3))]
    assert len(of_tensor("head.weight")) == 3
    expected = vectors.base("fc.weight") + vectors.stack("fc.weight")[[0, 2]].sum(0)
    torch.testing.assert_close(merged["fc.weight"], expected)


@pytest.mark.parametrize("rule", [Looks(), LooksAtWhole(), LooksAtTasks()], ids=lambda rule: rule.unit)
def test_no_rule_is_asked_where_every_task_is_pruned(rule, vectors):
    merged = merge(vectors, MergeRecipe(rule, prune=["fc"]))
    assert not of_tensor("fc.weight")
    assert of_tensor("head.weight")
    assert torch.equal(merged["fc.weight"], vectors.base("fc.weight"))


def test_a_block_comes_with_the_same_block_of_the_statistics(vectors):
    data = {task: random_state(seed) for seed, task in enumerate(vectors.tasks)}
    merge(vectors, MergeRecipe(Looks()), data=data, execution=in_blocks_of(4))
    given = torch.cat([statistics for _, _, statistics in of_tensor("fc.weight")], dim=1)
    assert torch.equal(given, torch.stack([data[task]["fc.weight"].flatten() for task in vectors.tasks]))


def test_statistics_may_stand_under_a_modules_name_and_are_whole_for_whole_tensors(vectors):
    data = {task: {"fc": torch.full((3, 3), float(seed))} for seed, task in enumerate(vectors.tasks)}
    merge(vectors, MergeRecipe(LooksAtWhole()), data=data)
    ((_, _, given),) = of_tensor("fc.weight")
    assert torch.equal(given, torch.stack([data[task]["fc"] for task in vectors.tasks]))
    assert of_tensor("head.weight")[0][2] is None


def test_statistics_that_one_task_lacks_are_none(vectors):
    data = {task: {} if task == "b" else random_state(1) for task in vectors.tasks}
    merge(vectors, MergeRecipe(Looks()), data=data)
    assert all(statistics is None for _, _, _, statistics in SEEN)


@pytest.mark.parametrize("execution", [PLAIN, COMPILED], ids=["plain", "compiled"])
def test_a_variance_is_never_negative(execution):
    base = {"bn.running_mean": torch.zeros(1), "bn.running_var": torch.tensor([0.5])}
    # As where an expert's file is damaged, or a difference was pruned to a fraction of itself.
    tuned = {"bn.running_mean": torch.ones(1), "bn.running_var": torch.tensor([-4.0])}
    merged = merge(TaskVectors.open(base, {"a": tuned}), MergeRecipe(), execution=execution)
    assert merged["bn.running_var"].item() == 0
    assert merged["bn.running_mean"].item() == 1


@pytest.mark.parametrize("rule", ["task_arithmetic", "simple_average", "ties"])
def test_the_published_alpha_is_the_quotient_of_sums_over_the_whole_model(rule):
    shapes = {f"blocks.{block}.{name}": shape for block in range(3) for name, shape in SHAPES.items()}
    base = random_state(0, shapes=shapes)
    tasks = {
        task: {name: base[name] + change for name, change in random_state(seed, 0.1, shapes).items()}
        for seed, task in enumerate("abc", start=1)
    }
    vectors = TaskVectors.open(base, tasks)
    plain = merge(vectors, MergeRecipe(rule, scale=1.0))
    summed = sum(float(vectors.stack(name).double().sum(0).abs().sum()) for name in vectors.names)
    combined = sum(float((plain[name] - base[name]).double().abs().sum()) for name in vectors.names)
    alpha = summed / combined / 3
    lines = merge(vectors, MergeRecipe(rule, scale=1.0, layer_scaling=LiNeS(alpha=None, beta=0.5)))
    for block in range(3):
        name = f"blocks.{block}.fc.weight"
        expected = base[name] + (alpha + 0.5 * block / 2) * (plain[name] - base[name])
        torch.testing.assert_close(lines[name], expected, atol=1e-5, rtol=1e-5)


class OwnRule(MergeRule):
    """A user's rule, given as a function."""

    name = "own"
    published_scale = 1.0
    unit = "element"

    def __init__(self, function, unit="element"):
        self.function, self.__class__ = function, type("Own", (OwnRule,), {"unit": unit})

    def combine(self, tau, context):
        return self.function(tau)

    def to_dict(self):
        return {"name": self.name}


def masked_and_summed(tau):
    merged = sum_tasks(tau.clone())
    tau *= 2
    return merged * 0.5


NOT_FOR_KERNELS = {
    "branches on values": lambda tau: sum_tasks(tau) if (tau > 0).any() else sum_tasks(tau) * 2,
    "branches on a sum": lambda tau: sum_tasks(tau * 3) if sum_tasks(tau.clone()).sum() > 0 else sum_tasks(tau * 2),
    "multiplies with a comparison": lambda tau: sum_tasks(tau * (tau != 0)),
    "goes through rows": lambda tau: sum(row * number for number, row in enumerate(tau)),
    "takes a row": lambda tau: tau[0],
    "uses torch": lambda tau: torch.median(tau, 0).values,
    "uses methods": lambda tau: tau.clamp(max=1).sum(0),
    "looks at the shape": lambda tau: sum_tasks(tau) / tau.shape[0],
    "writes into it": masked_and_summed,
    "uses it after it was overwritten": lambda tau: sum_tasks(trim_(tau, torch.ones(3))) + sum_tasks(tau),
}


@pytest.fixture
def fused(monkeypatch):
    """Tensors' programs that were run by kernels."""
    programs, run = [], _combine.merge_fused
    monkeypatch.setattr(_combine, "merge_fused", lambda *given: programs.append(given[0]) or run(*given))
    return programs


@pytest.mark.parametrize("function", NOT_FOR_KERNELS.values(), ids=NOT_FOR_KERNELS)
@pytest.mark.parametrize("unit", ["element", "tensor"])
def test_a_rule_of_a_user_that_no_kernel_computes_is_merged_as_ever(unit, function, fused):
    assert_compiled_is_plain(ragged_vectors(3, sizes=(1, 40)), MergeRecipe(OwnRule(function, unit)))
    assert fused == []


@pytest.mark.parametrize("unit", ["element", "tensor"])
def test_a_rule_of_a_user_that_one_computes_is_merged_by_it(unit, fused):
    merged = assert_compiled_is_plain(
        ragged_vectors(3, sizes=(1, 40)), MergeRecipe(OwnRule(sum_tasks, unit), scale=2.0)
    )
    assert len(fused) == len(merged)


def spoilt(where):
    """Return task vectors of which one tensor cannot be merged, and by what scale."""
    base = random_state(0, shapes={"a.weight": (4, 4), "w.weight": (60, 50), "z.weight": (3, 3)})
    tasks = {task: noise(base, seed, 0.01) for seed, task in enumerate("ab", start=1)}
    if where == "overflow":
        for state, value in ((base, 3e38), (tasks["a"], 3.2e38), (tasks["b"], 3.2e38)):
            state["w.weight"].fill_(value)
        return open_vectors(base, tasks), 10.0
    (base if where.startswith("base") else tasks["b"])["w.weight"][59, 49] = float(where.split()[1])
    return open_vectors(base, tasks), 1.0


def told(vectors, recipe, execution):
    with pytest.raises(ValueError, match="'w.weight'") as caught:
        merge(vectors, recipe, execution=execution)
    return type(caught.value), str(caught.value)


SPOILT = ["base inf", "base nan", "expert -inf", "expert nan", "overflow"]


@pytest.mark.filterwarnings("ignore:task '.' ")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("where", SPOILT)
@pytest.mark.parametrize(
    "rule",
    ["task_arithmetic", "ties", "breadcrumbs", "dare_ties", "consensus_ta", {"name": "ties", "scope": "tensor"}],
    ids=str,
)
def test_what_cannot_be_merged_is_told_as_without_kernels(rule, where, threads, use_threads):
    use_threads(threads)
    vectors, scale = spoilt(where)
    recipe = MergeRecipe(rule, scale=scale)
    kind, message = told(vectors, recipe, COMPILED)
    assert (kind, message) == told(vectors, recipe, PLAIN)
    assert ("state dict: 1 NaN or infinite values" in message) == (where != "overflow")
    assert torch.get_num_threads() == threads


@pytest.mark.filterwarnings("ignore:task '.' ")
def test_a_merge_into_a_file_that_fails_leaves_none(tmp_path):
    vectors, _ = spoilt("expert nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        save_merged(vectors, "breadcrumbs", tmp_path / "merged.safetensors", execution=COMPILED)
    assert list(tmp_path.iterdir()) == []


def test_a_rule_that_gets_tasks_one_by_one_counts_one():
    @dataclass(frozen=True, kw_only=True)
    class Share(MergeRule):
        name = "share_of_one"
        unit = "task"

        def parts(self, tau, context):
            return tau / len(tau)

    vectors = TaskVectors.open({"w": torch.zeros(3)}, {task: {"w": torch.ones(3)} for task in "ab"})
    recipe = MergeRecipe(rule=Share(), scale=1.0)
    for compiled in (False, True):
        assert merge(vectors, recipe, execution=Execution(compiled=compiled))["w"].tolist() == [2.0] * 3


def test_on_a_device_the_matrices_of_tensors_of_one_shape_are_decomposed_at_once(monkeypatch):
    seen, plain = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda gram: seen.append(tuple(gram.shape)) or plain(gram))
    base = {f"blocks.{block}.weight": torch.zeros(6, 4) for block in range(3)}
    tasks = {task: {name: torch.randn(6, 4) for name in base} for task in "ab"}
    plan = Merge(TaskVectors.open(base, tasks), MergeRecipe("tsv_m")).plan(Execution(memo=Memo()))
    work = _combine._on_device(plan.jobs)
    next(work)
    assert seen == [(6, 4, 4)]
    assert [each.name for each in work] == list(plan.jobs)[1:]
    assert len(seen) == 1

"""Reweighting is a merge of edited experts, whatever rule, mask, execution or sink comes after it."""

import os
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from _helpers.every_rule import SHAPES, changed, statistics_for, task_names, vectors_for
from _helpers.gated import gated_module
from _helpers.models import make_model, states_of
from _helpers.processes import launch, report
from _helpers.states import assert_same_bits, open_vectors, random_state

from lwptv_lightning import LayerMask, LiNeS, Merge, MergeRecipe, TaskVectors, merge, plan_pruning, save_merged
from lwptv_lightning.checkpoints import Provenance, open_checkpoint
from lwptv_lightning.engine import ALONE, Execution, Ranks, anew
from lwptv_lightning.inspection.remake import plan_again
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.learning.parts import HeldParts
from lwptv_lightning.merging import MemoryLimitError
from lwptv_lightning.modifiers import MonoSoup
from lwptv_lightning.rules import RULES
from lwptv_lightning.saliency import merged_layers
from lwptv_lightning.search.weights import Weights

SOUP = MonoSoup(version="variance", threshold=0.5, exclude=("*.0.mlp.fc2.*",))
LAYERS = layers_from_names(tuple(SHAPES))


def experts(rule):
    """Experts over a base of zeros, whose weights are the task vectors themselves, as they are and edited."""
    base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    tasks = {task: changed(seed, 0.1) for seed, task in enumerate(task_names(rule), start=1)}
    edited = {task: {name: edit(name, value) for name, value in state.items()} for task, state in tasks.items()}
    return open_vectors(base, tasks), open_vectors(base, edited)


def edit(name, value):
    return SOUP.reweighted(value, torch.zeros_like(value), anew) if SOUP.treats(name, value.shape) else value


def some_mask(tasks):
    kept = torch.arange(len(tasks) * len(LAYERS)).reshape(len(tasks), -1) % 3 > 0
    return LayerMask(tasks, LAYERS.names, kept)


KINDS = {
    "plain": {},
    "elements": {"elements": {"ratio": 0.4}},
    "LiNeS": {"layer_scaling": LiNeS(alpha=None)},
    "float64": {"dtype": "float64"},
    "parts": {"prune_on": "parts"},
    "mask": {},
}


FEW = ("dare", "emr", "regmean", "ties", "tsv_m", "weighted_average")
CASES = [(rule, "mask") for rule in sorted(RULES)]
CASES += [(rule, "parts") for rule in sorted(RULES) if RULES[rule].has_parts()]
CASES += [(rule, kind) for rule in FEW for kind in KINDS if kind not in ("mask", "parts")]


@pytest.mark.parametrize(("rule", "kind"), CASES)
def test_every_rule_merges_what_reweighting_left(rule, kind):
    plain, edited = experts(rule)
    recipe = MergeRecipe(rule, **KINDS[kind])
    if kind == "float64":  # in which what is edited has more digits
        state = {task: {name: plain.expert(task, name).double() for name in SHAPES} for task in plain.tasks}
        state = {task: {name: edit(name, own[name]) for name in own} for task, own in state.items()}
        edited = open_vectors({name: plain.base(name).double() for name in SHAPES}, state)
    options = {"data": statistics_for(rule, plain)}
    if kind in ("mask", "parts"):
        options |= {"layers": LAYERS, "mask": some_mask(plain.tasks)}
    expected = merge(edited, recipe, **options)
    found = merge(plain, recipe.replace(reweight=SOUP), **options)
    assert_same_bits(found, {name: tensor.to(found[name].dtype) for name, tensor in expected.items()})
    alone = merge(plain, recipe, **options)
    assert any(not torch.equal(found[name], alone[name]) for name in SHAPES)


@pytest.mark.parametrize("rule", ["dare_ties", "ties", "task_arithmetic", "magnitude", "tsv_m"])
def test_blocks_threads_limits_and_kernels_change_no_bit(rule, monkeypatch):
    vectors = vectors_for(rule)
    recipe = MergeRecipe(rule, ratio=0.3, reweight=SOUP, layer_scaling=LiNeS())
    expected = merge(vectors, recipe)
    ways = [Execution(block_bytes=60), Execution(max_memory="200MB"), Execution(compiled=False)]
    for execution in ways:
        assert_same_bits(merge(vectors, recipe, execution=execution), expected)
    monkeypatch.setattr(Execution, "threads", 3)
    assert_same_bits(merge(vectors, recipe), expected)
    assert_same_bits(merge(vectors, recipe, execution=Execution(block_bytes=60)), expected)


def test_compiled_kernels_read_what_is_reweighted():
    pytest.importorskip("numba")
    vectors = vectors_for("ties")
    recipe = MergeRecipe("ties", reweight=SOUP, ratio=0.3)
    ways = (merge(vectors, recipe, execution=Execution(compiled=compiled)) for compiled in (True, False))
    assert_same_bits(*ways)


def test_layers_are_scored_on_the_plain_task_vectors():
    vectors = vectors_for("ties")
    recipe = MergeRecipe("ties", ratio=0.5)
    plain, found = (plan_pruning(vectors, each) for each in (recipe, recipe.replace(reweight=SOUP)))
    assert torch.equal(plain.mask.kept, found.mask.kept)
    assert torch.equal(plain.scores.values, found.scores.values)
    planned = Merge(vectors, recipe.replace(reweight=SOUP)).plan()
    assert torch.equal(planned.mask.kept, plain.mask.kept)


def test_what_is_pruned_is_neither_read_nor_decomposed(counting_checkpoint, monkeypatch):
    base = random_state(0, shapes=SHAPES)
    opened = {task: counting_checkpoint(random_state(seed, shapes=SHAPES)) for seed, task in enumerate("abc", start=1)}
    vectors = TaskVectors.open(base, {task: checkpoint for task, (checkpoint, _) in opened.items()})
    for _, counter in opened.values():
        counter.clear()
    decomposed = []
    usual = MonoSoup.reweighted

    def counted(self, delta, base, once):
        decomposed.append(bool(delta.any()))
        return usual(self, delta, base, once)

    monkeypatch.setattr(MonoSoup, "reweighted", counted)
    mask = some_mask(vectors.tasks)
    merge(vectors, MergeRecipe(reweight=SOUP), LAYERS, mask=mask)
    kept = {task: {name for layer in LAYERS if row[layer.name] for name in layer.tensors} for task, row in mask}
    assert {task: set(counter) for task, (_, counter) in opened.items()} == kept
    assert sum(decomposed) == sum(SOUP.treats(name, SHAPES[name]) for names in kept.values() for name in names)


def test_passes_of_a_merge_decompose_each_task_vector_once(monkeypatch):
    decomposed, usual = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (decomposed.append(1), usual(matrix))[1])
    vectors = vectors_for("ties")
    merge(vectors, MergeRecipe("ties", reweight=SOUP, layer_scaling=LiNeS()))
    assert len(decomposed) == 3 * sum(SOUP.treats(name, shape) for name, shape in SHAPES.items())
    decomposed.clear()
    plan = Merge(vectors, MergeRecipe("simple_average", reweight=SOUP, prune_on="parts")).plan()
    assert torch.equal(
        plan.parts("blocks.0.attn.qkv.weight").sum(0), plan.stream.stack("blocks.0.attn.qkv.weight").div(3).sum(0)
    )
    assert len(decomposed) == 3


def test_a_base_that_is_not_zero_and_of_half_precision():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        vectors = vectors_for("task_arithmetic", dtype)
        found = merge(vectors, MergeRecipe("task_arithmetic", 0.5, reweight=SOUP))
        for name in SHAPES:
            taus = [edit(name, row) for row in vectors.stack(name)]
            expected = (vectors.base(name).to(torch.promote_types(dtype, torch.float32)) + 0.5 * sum(taus)).to(dtype)
            torch.testing.assert_close(found[name], expected)


def test_globs_mean_a_tied_weight_by_any_of_its_names():
    vectors = TaskVectors.open(*states_of(make_model("tied weights")))
    ((other, first),) = vectors.tied.items()
    alone = merge(vectors, MergeRecipe())
    for excluded, same in ((other, True), (first, True), ("none", False)):
        found = merge(vectors, MergeRecipe(reweight=MonoSoup(version="variance", exclude=(excluded,))))
        assert torch.equal(found[first], alone[first]) == same
        assert torch.equal(found[first], found[other])


def test_running_statistics_are_averaged_as_ever():
    vectors = TaskVectors.open(*states_of(make_model("ResNet")), model=make_model("ResNet"))
    assert vectors.averaged
    alone, found = (merge(vectors, MergeRecipe(reweight=each)) for each in (None, SOUP))
    for name in (*vectors.averaged, *vectors.copied):
        assert torch.equal(found[name], alone[name])
    assert any(not torch.equal(found[name], alone[name]) for name in vectors.names)


def test_a_limit_of_memory_counts_what_is_held(monkeypatch):
    base = {"wide": torch.zeros(1024, 1024)}
    generator = torch.Generator().manual_seed(0)
    vectors = TaskVectors.open(base, {task: {"wide": torch.randn(1024, 1024, generator=generator)} for task in "ab"})
    merge(vectors, MergeRecipe(), max_memory="40MB")
    monkeypatch.setattr(TaskVectors, "open_stack", lambda *given: pytest.fail("a weight was read"))
    with pytest.raises(MemoryLimitError, match="'wide'"):
        merge(vectors, MergeRecipe(reweight=MonoSoup()), max_memory="40MB")


def test_what_treats_nothing_says_so():
    vectors = vectors_for("ties")
    with pytest.warns(UserWarning, match=r"reweight='monosoup' treats none of 11 tensors; .* stay as they are"):
        found = merge(vectors, MergeRecipe("ties", reweight=MonoSoup(exclude=("*",))))
    assert_same_bits(found, merge(vectors, MergeRecipe("ties")))


def test_a_saved_merge_is_made_again_from_what_its_file_says(tmp_path):
    vectors = vectors_for("ties")
    recipe = MergeRecipe("ties", ratio=0.3, reweight=SOUP)
    path = save_merged(vectors, recipe, tmp_path / "merged.safetensors")
    made = Provenance.of(open_checkpoint(path))
    assert MergeRecipe.from_dict(made.recipe).reweight == SOUP
    assert_same_bits(dict(plan_again("m", made, vectors).tensors()), merge(vectors, recipe))


def test_candidates_of_a_sweep_that_differ_in_it_share_nothing():
    module = gated_module()
    candidates = {str(each): MergeRecipe("ties", reweight=each) for each in (None, SOUP, MonoSoup(version="variance"))}
    candidates |= {f"{name} x": recipe.replace(scale=0.5) for name, recipe in candidates.items()}
    made = {each.name: each.tensors for each in Weights(module, torch.device("cpu"), {}).of(candidates)}
    for name, recipe in candidates.items():
        expected = merge(module.vectors, recipe)
        assert all(torch.equal(tensor, expected[each]) for each, tensor in made[name].items()), name
    assert len({tuple(float(tensor.sum()) for tensor in tensors.values()) for tensors in made.values()}) == 6


def test_coefficients_are_learnt_on_parts_of_what_it_left():
    module = gated_module()
    layers = merged_layers(module.vectors, module.layers("module"))
    recipe = MergeRecipe("tsv_m", 1.0, prune_on="parts", reweight=SOUP)
    parts = HeldParts.of(module, recipe, layers, torch.empty(0))
    rows = {task: {"*": 0.5} for task in module.vectors.tasks}
    merged = merge(module.vectors, recipe.replace(coefficients=rows), layers)
    for name, tensor in parts.model(torch.full((len(rows), len(layers)), 0.5)).items():
        torch.testing.assert_close(tensor.detach(), merged[name])


def measured(ranks=ALONE):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {}
        for rule, fields in (("ties", {"ratio": 0.3}), ("tsv_m", {}), ("dare", {"elements": {"ratio": 0.5}})):
            recipe = MergeRecipe(rule, reweight=SOUP, layer_scaling=LiNeS(), **fields)
            found[rule] = {
                name: value.tolist() for name, value in merge(vectors_for(rule), recipe, ranks=ranks).items()
            }
        return found


def test_two_processes_give_the_bits_of_one(tmp_path):
    expected = measured()
    assert all(found == expected for found in launch(__file__, tmp_path, ranks=2))


if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=rank, world_size=2)
    report(sys.argv[1], rank, measured(Ranks.current()))
    dist.destroy_process_group()

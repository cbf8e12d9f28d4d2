"""How a plan applies what calibrates: to which tensors, in which order, and to what a rule made of each task."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from _helpers.every_rule import SHAPES, statistics_for, vectors_for
from _helpers.models import make_model, states_of, vectors_of_model
from _helpers.states import assert_same_bits, open_vectors, random_state

from lwptv_lightning import LayerMask, LiNeS, MergeRecipe, MergeRule, TaskVectors, merge
from lwptv_lightning.engine import Execution
from lwptv_lightning.layers import layers_from_names, trace_layers
from lwptv_lightning.merging import MemoryLimitError, Merge, save_adapter
from lwptv_lightning.merging.calibrated import Calibrated, plain
from lwptv_lightning.modifiers import SVC, SubspaceBoosting
from lwptv_lightning.rules import RULES

CALIBRATIONS = [SVC(alpha=0.5, scale=0.8), SubspaceBoosting(beta=0.5, split=("*qkv*.weight",), exclude=("*.1.*",))]
OTHERS = ["task_arithmetic", "ties", "dare_ties", "fisher", "breadcrumbs", "tsv_m", "regmean", "sce"]
"""Some that work on elements, on tasks and on tensors, survey, draw, and need data."""
SUMS = [name for name in OTHERS if RULES[name].has_parts()]


def merged(recipe, vectors, **options):
    return merge(vectors, recipe, data=statistics_for(recipe.rule.name, vectors), **options)


def factor_of(matrix, tasks, calibrate, blocks=1):
    """Return what a merged and scaled matrix is multiplied with from the left, spelled out."""
    made = []
    for own, theirs in zip(np.split(matrix, blocks), np.split(tasks, blocks, axis=1), strict=True):
        left, values, right = np.linalg.svd(own, full_matrices=False)
        real = values > 1e-6 * values.max(initial=0)
        left, values, right = left[:, real], values[real], right[real]
        if isinstance(calibrate, SVC):
            rows = [left.T @ task for task in theirs if task.any()]
            held = [np.maximum((values[:, None] * right * row).sum(1) / (row**2).sum(1), 0.5) for row in rows]
            gains = 1 / np.mean(held, axis=0) if held else np.ones_like(values)
        else:
            least = values[np.argmax(values.cumsum() >= calibrate.beta * values.sum())] if len(values) else 0
            gains = np.maximum(values, least) / values
        made.append(calibrate.scale * left * gains @ left.T)
    whole = np.zeros((len(matrix), len(matrix)))
    size = len(matrix) // blocks
    for block, factor in enumerate(made):
        whole[block * size : (block + 1) * size, block * size : (block + 1) * size] = factor
    return whole


def treated(calibrate, vectors):
    return {name for name in vectors.names if calibrate.treats(name, vectors.headers[name].shape)}


@pytest.mark.parametrize("calibrate", CALIBRATIONS, ids=lambda each: each.name)
@pytest.mark.parametrize("rule", OTHERS)
def test_what_any_rule_made_and_the_scale_is_calibrated(rule, calibrate):
    require_calibrated(MergeRecipe(rule, 0.7, dtype="float64"), calibrate)


@pytest.mark.parametrize("calibrate", CALIBRATIONS, ids=lambda each: each.name)
@pytest.mark.parametrize("rule", ["ties", "task_arithmetic"])
def test_what_a_rule_made_in_a_subspace_is_calibrated(rule, calibrate):
    require_calibrated(MergeRecipe(rule, 0.7, subspace="knots", dtype="float64"), calibrate)


@pytest.mark.parametrize("prune_on", ["task_vectors", "parts"])
@pytest.mark.parametrize("calibrate", CALIBRATIONS, ids=lambda each: each.name)
def test_what_calibrates_sees_reweighted_task_vectors_as_the_rule_does(calibrate, prune_on):
    vectors, alone = vectors_for("tsv_m", torch.float64), MergeRecipe("task_arithmetic", 1.0, dtype="float64")
    reweighted = {task: merge(vectors.select([task]), alone.replace(reweight="monosoup")) for task in vectors.tasks}
    recipe = MergeRecipe("tsv_m", 0.7, dtype="float64", calibrate=calibrate, prune_on=prune_on)
    found = merge(vectors, recipe.replace(reweight="monosoup"))
    base = {name: vectors.base(name) for name in SHAPES}
    expected = merge(open_vectors(base, reweighted), recipe)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def require_calibrated(recipe, calibrate):
    """Check each tensor against the same recipe without what calibrates."""
    vectors = vectors_for(recipe.rule.name)
    alone, found = (merged(recipe.replace(calibrate=each), vectors) for each in (None, calibrate))
    base = random_state(0, shapes=SHAPES)
    names = treated(calibrate, vectors)
    assert 2 < len(names) < len(SHAPES)
    for name in SHAPES:
        if name not in names:
            assert torch.equal(found[name], alone[name]), name
            continue
        matrix = (alone[name].double() - base[name]).numpy()
        tasks = vectors.stack(name).double().numpy()
        factor = factor_of(matrix, tasks, calibrate, calibrate.row_blocks(name, SHAPES[name]))
        np.testing.assert_allclose(found[name].double() - base[name], factor @ matrix, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("calibrate", CALIBRATIONS, ids=lambda each: each.name)
@pytest.mark.parametrize("rule", SUMS)
def test_parts_are_multiplied_with_what_calibrates_their_sum(rule, calibrate):
    vectors, data = vectors_for(rule), statistics_for(rule, vectors_for(rule))
    recipe = MergeRecipe(rule, 0.7, prune_on="parts")
    alone, plan = (Merge(vectors, recipe.replace(calibrate=each), data=data).plan() for each in (None, calibrate))
    for name in treated(calibrate, vectors):
        parts = alone.parts(name).double().numpy()
        tasks = vectors.stack(name).double().numpy()
        factor = factor_of(0.7 * parts.sum(0), tasks, calibrate, calibrate.row_blocks(name, SHAPES[name]))
        assert plan.jobs[name].scale == calibrate.scale
        made = plan.jobs[name].scale * plan.parts(name).double()
        largest = np.abs(parts).max(initial=1)
        np.testing.assert_allclose(made, factor @ (0.7 * parts), atol=1e-5 * largest, err_msg=name)
    whole = merged(recipe.replace(calibrate=calibrate, prune_on="task_vectors"), vectors)
    for name, tensor in plan.tensors():
        torch.testing.assert_close(tensor, whole[name], atol=1e-5, rtol=1e-5)


def test_mask_and_coefficients_act_on_calibrated_parts_whose_factor_is_of_all():
    vectors = vectors_for("tsv_m")
    recipe = MergeRecipe("tsv_m", 0.7, prune_on="parts", calibrate=SVC())
    plan = Merge(vectors, recipe).plan()
    weighed = recipe.replace(coefficients={"a": {"*": 0.5}, "b": {"*": 0.0}, "c": {"*": 2.0}})
    pruned = recipe.replace(prune=("blocks.0.attn*",))
    for name, tensor in merge(vectors, weighed).items():
        parts, scale = plan.parts(name), plan.jobs[name].scale
        expected = vectors.base(name) + scale * (0.5 * parts[0] + 2.0 * parts[2])
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5)
    left = merge(vectors, pruned)
    assert torch.equal(left["blocks.0.attn.proj.weight"], vectors.base("blocks.0.attn.proj.weight"))
    assert torch.equal(left["blocks.0.mlp.fc1.weight"], merge(vectors, recipe)["blocks.0.mlp.fc1.weight"])


def test_pruned_task_vectors_are_none_of_the_tasks_that_calibrate():
    vectors, layers = vectors_for("ties"), layers_from_names(list(SHAPES))
    recipe = MergeRecipe("task_arithmetic", 0.3, calibrate=SVC(alpha=0.25))
    mask = layers.names.index("blocks.0.mlp.fc1")
    kept = torch.ones(3, len(layers), dtype=torch.bool)
    kept[2, mask] = False
    found = merge(vectors, recipe, layers, mask=LayerMask(vectors.tasks, layers.names, kept))
    two = merge(vectors.select(["a", "b"]), recipe)
    name = "blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(found[name], two[name])


def test_layer_scaling_comes_after_and_its_own_alpha_is_of_the_calibrated_vector():
    vectors = vectors_of_model(model := make_model("ViT"))
    layers, calibrate = trace_layers(model), SVC(alpha=0.3, scale=0.9)
    recipe = MergeRecipe("ties", 0.6, calibrate=calibrate)
    plain_model = merge(vectors, recipe, layers)
    added = {name: plain_model[name] - vectors.base(name) for name in vectors.names}
    sums = sum(float(vectors.stack(name).sum(0).abs().sum()) for name in vectors.names)
    alpha = sums / sum(float(each.abs().sum()) for each in added.values()) / len(vectors)
    plan = Merge(vectors, recipe.replace(layer_scaling=LiNeS(beta=0.2)), layers).plan()
    found = dict(plan.tensors())
    for name, factor in (("head.weight", alpha), ("blocks.1.fc1.weight", alpha + 0.2), ("norm.bias", alpha)):
        if name in added:
            torch.testing.assert_close(found[name] - vectors.base(name), factor * added[name], atol=1e-6, rtol=1e-4)
    assert plan.jobs["head.weight"].scale == pytest.approx(0.9 * alpha, rel=1e-5)


def test_other_tensors_keep_the_rule_and_its_way(vectors):
    recipe = MergeRecipe("ties", 0.4, calibrate=SVC(exclude=("fc*",)))
    plan = Merge(vectors, recipe).plan()
    around = {name: job for name, job in plan.jobs.items() if isinstance(job.rule, Calibrated)}
    assert set(around) == {"stem.weight", "head.weight"} & set(around) != set()
    assert "fc.weight" not in around
    for name, job in plan.jobs.items():
        assert job.scale == (1.0 if name in around else 0.4)
        assert (job.rule.unit == "element") == (name not in around)
        assert plain(job.rule) is plain(plan.jobs["fc.weight"].rule)
        assert job.rule.surveys_model()


@pytest.mark.parametrize("calibrate", CALIBRATIONS, ids=lambda each: each.name)
@pytest.mark.parametrize("rule", ["dare_ties", "breadcrumbs", "tsv_m"])
def test_blocks_threads_and_kernels_change_no_bit(rule, calibrate, monkeypatch):
    vectors, recipe = vectors_for(rule), MergeRecipe(rule, ratio=0.4, calibrate=calibrate)
    expected = merge(vectors, recipe)
    assert_same_bits(merge(vectors, recipe, execution=Execution(block_bytes=60)), expected)
    monkeypatch.setattr(Execution, "threads", 3)
    assert_same_bits(merge(vectors, recipe), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_bases_of_other_dtypes(dtype):
    vectors = vectors_for("task_arithmetic", dtype)
    recipe = MergeRecipe("task_arithmetic", 0.3, calibrate=SVC(), dtype="float64")
    wide = {name: vectors.base(name).double() for name in SHAPES}
    tasks = {task: {name: vectors.expert(task, name).double() for name in SHAPES} for task in vectors.tasks}
    expected = merge(open_vectors(wide, tasks), recipe)
    found = merge(vectors, recipe)
    assert all(found[name].dtype == dtype for name in SHAPES)
    assert_same_bits(found, {name: tensor.to(dtype) for name, tensor in expected.items()})


def test_globs_mean_a_tied_weight_by_any_of_its_names():
    vectors = TaskVectors.open(*states_of(make_model("tied weights")))
    ((other, first),) = vectors.tied.items()
    recipe = MergeRecipe("task_arithmetic", 0.3)
    alone = merge(vectors, recipe)
    for excluded, same in ((other, True), (first, True), ("none", False)):
        found = merge(vectors, recipe.replace(calibrate=SVC(exclude=(excluded,))))
        assert torch.equal(found[first], alone[first]) == same
        assert torch.equal(found[first], found[other])


def test_a_limit_of_memory_counts_what_is_calibrated(monkeypatch):
    base = {"embedding": torch.zeros(1024, 1024), "wide": torch.zeros(512, 512)}
    vectors = TaskVectors.open(base, {task: {name: base[name] + 1 for name in base} for task in "ab"})
    recipe = MergeRecipe(calibrate=SVC())
    merge(vectors, recipe, max_memory="100MB")
    monkeypatch.setattr(TaskVectors, "open_stack", lambda *given: pytest.fail("a weight was read"))
    told = r"by 'task_arithmetic and svc' takes up to .* the largest tensor is 'wide'"
    with pytest.raises(MemoryLimitError, match=told):
        merge(vectors, recipe, max_memory="60MB")
    with pytest.raises(MemoryLimitError, match="'embedding'"):
        merge(vectors, recipe.replace(calibrate="subspace_boosting"), max_memory="100MB")
    plan = Merge(vectors, MergeRecipe()).plan(Execution(max_memory=60_000_000))
    with pytest.raises(MemoryLimitError, match="'wide'"):
        plan.rescaled(recipe)


def test_an_adapter_holds_what_is_calibrated(tmp_path):
    vectors = vectors_for("task_arithmetic")
    recipe = MergeRecipe("task_arithmetic", 0.3, calibrate=SVC(scale=0.7))
    saved = save_adapter(vectors, recipe, tmp_path / "adapter", rank="full", drop_rest=True)
    found = merge(vectors, recipe)
    norms = {layer.name: layer.norm for layer in saved.layers}
    assert norms
    for name, norm in norms.items():
        assert norm == pytest.approx(float((found[name] - vectors.base(name)).norm()), rel=1e-4)


def test_what_treats_nothing_says_so(vectors):
    with pytest.warns(UserWarning, match=r"calibrate='svc' treats none of \d tensors; the rule alone makes them"):
        found = merge(vectors, MergeRecipe(calibrate=SVC(exclude=("*",))))
    assert_same_bits(found, merge(vectors, MergeRecipe()))


@pytest.mark.parametrize("rule", ["iso_c", "iso_cts"])
def test_directions_that_are_noise_are_refused(rule):
    told = f"calibrate='svc' cannot stand beside rule '{rule}', which makes all singular values .* equal.*noise.*tsv_m"
    with pytest.raises(ValueError, match=told):
        MergeRecipe(rule, calibrate="svc")
    with pytest.raises(ValueError, match=told):
        MergeRecipe.from_dict({"rule": rule, "calibrate": {"name": "svc", "alpha": 0.5}})
    with pytest.raises(ValueError, match=told):
        MergeRecipe("tsv_m", calibrate="svc").replace(rule=rule)
    # Where all are equal already, none is raised.
    vectors = vectors_for(rule)
    alone, boosted = (merge(vectors, MergeRecipe(rule, calibrate=each)) for each in (None, "subspace_boosting"))
    for name, tensor in boosted.items():
        torch.testing.assert_close(tensor, alone[name])


def test_own_rules_may_say_that_they_are_isotropic():
    @dataclass(frozen=True, kw_only=True)
    class Own(MergeRule):
        name, paper, published_scale, is_isotropic = "own", "", 1.0, True

        def combine(self, tau, context):
            return tau[0]

    with pytest.raises(ValueError, match="beside rule 'own'"):
        MergeRecipe(Own(), calibrate=SVC())


def test_a_tasks_own_model_is_not_calibrated():
    with pytest.raises(ValueError, match="calibrate='svc' acts on the model of all tasks, so task='a'"):
        MergeRecipe("emr", task="a", calibrate=SVC())
    with pytest.raises(ValueError, match="task='a'"):
        merge(vectors_for("emr"), MergeRecipe("emr", calibrate=SVC()), task="a")


def test_a_recipe_with_it_survives_json():
    for calibrate in CALIBRATIONS:
        recipe = MergeRecipe("tsv_m", calibrate=calibrate)
        assert MergeRecipe.from_json(recipe.to_json()) == recipe
    assert MergeRecipe(calibrate="svc").calibrate == SVC()

"""Files are equal to what their recipes make of their inputs, or what is not is told by name."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from _helpers.every_rule import SHAPES, statistics_for, vectors_for
from _helpers.models import MODELS, make_model, states_of
from _helpers.states import random_state
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lwptv_lightning import LayerMask, MergeModule, MergeRecipe, TaskVectors, save_merged, trace_layers
from lwptv_lightning.checkpoints import (
    CHECKSUM_KEYS,
    CheckpointError,
    Provenance,
    fingerprint,
    open_checkpoint,
    tensor_fingerprints,
    write_safetensors,
)
from lwptv_lightning.inspection import verification_text, verify
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging import fingerprint_of_data, read_data_statistics
from lwptv_lightning.merging.data import write_data_statistics
from lwptv_lightning.rules import RULES


def inputs_of(vectors):
    base = {name: vectors.base(name) for name in vectors.headers}
    return base, {task: {name: vectors.expert(task, name) for name in vectors.headers} for task in vectors.tasks}


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def edited(path, **changes):
    """Write a file anew with other tensors, and a checksum of these."""
    about = {key: text for key, text in metadata_of(path).items() if key not in CHECKSUM_KEYS}
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for name, change in changes.items():
        tensors[name] = change(tensors[name])
    return write_safetensors(tensors, path, about)


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "merged.safetensors"


@pytest.fixture
def merged(vectors, out):
    return save_merged(vectors, MergeRecipe("ties", ratio=0.5, seed=3), out)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_is_made_again_bit_for_bit(rule, out):
    vectors = vectors_for(rule)
    data = statistics_for(rule, vectors)
    save_merged(vectors, MergeRecipe(rule, ratio=0.25), out, data=data)
    base, tasks = inputs_of(vectors)
    found = verify(out, base, tasks, data=data)
    assert found.passed, verification_text(found)
    assert found.compared == found.tensors == len(SHAPES)
    some = verify(out, base, tasks, data=data, sample=3, seed=1)
    assert some.passed
    assert some.compared == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype(dtype, out):
    vectors = vectors_for("ties", dtype)
    save_merged(vectors, MergeRecipe("ties", dtype="float64"), out)
    assert verify(out, *inputs_of(vectors)).passed


def test_a_file_is_whole_and_a_flipped_bit_is_found_by_the_name_of_file_and_tensor(merged, base_state, task_states):
    assert verify(merged).passed
    flip(merged)
    found = verify(merged)
    assert not found.passed
    assert list(found.damaged) == [str(merged)]
    assert "merged.safetensors: its tensors are not those that were written" in verification_text(found)
    found = verify(merged, base_state, task_states)
    assert len(found.differing) == 1
    assert found.differing[next(iter(found.differing))].elements == 1


def test_a_flipped_bit_anywhere_is_found(merged):
    whole = merged.read_bytes()
    for at in range(0, len(whole), 37):
        flip(merged, at)
        try:
            found = verify(merged)
        except CheckpointError as error:
            assert "merged.safetensors" in str(error)  # noqa: PT017
        else:
            assert not found.passed, at
        merged.write_bytes(whole)
    assert verify(merged).passed


def test_an_edited_tensor_is_named_with_how_much_it_differs(merged, base_state, task_states):
    def change(tensor):
        tensor[0, 0] += 0.5
        tensor[1, 1] -= 0.25
        return tensor

    edited(merged, **{"fc.weight": change})
    assert verify(merged).passed  # its bytes are those that were written
    found = verify(merged, base_state, task_states)
    assert list(found.differing) == ["fc.weight"]
    difference = found.differing["fc.weight"]
    assert (difference.elements, difference.of, difference.largest) == (2, 15, pytest.approx(0.5, rel=1e-6))
    assert "fc.weight: 2 of 15 elements differ, by up to 0.5" in verification_text(found)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensor: tensor.reshape(3, 5), r"is torch.float32 \[3, 5\], expected torch.float32 \[5, 3\]"),
        (lambda tensor: tensor.double(), r"is torch.float64 .* expected torch.float32"),
        (lambda tensor: torch.full_like(tensor, torch.nan), "15 of 15 elements differ, by up to inf"),
        (lambda tensor: tensor * -0.0 + 0.0, "15 of 15"),
    ],
)
def test_other_shapes_dtypes_and_nan(change, told, merged, base_state, task_states):
    edited(merged, **{"fc.weight": change})
    (difference,) = verify(merged, base_state, task_states).differing.values()
    assert re.search(told, str(difference))


def test_tensors_too_many_and_too_few(merged, base_state, task_states):
    tensors = load_file(merged)
    tensors["more"] = tensors.pop("gain")
    write_safetensors(tensors, merged, {k: v for k, v in metadata_of(merged).items() if k not in CHECKSUM_KEYS})
    found = verify(merged, base_state, task_states, sample=1)
    assert {name: str(difference) for name, difference in found.differing.items()} == {
        "more": "is in the file alone",
        "gain": "is missing",
    }


def test_other_inputs_are_named(merged, base_state, task_states, fine_tuned):
    other = fine_tuned(base_state, 9)
    found = verify(merged, other, task_states)
    assert not found.passed
    assert list(found.inputs) == ["base"]
    assert found.compared == 0
    assert "base: is not the base that was merged" in verification_text(found)
    assert "Not made again" in verification_text(found)
    found = verify(merged, base_state, task_states | {"b": other})
    assert list(found.inputs) == ["b"]
    assert found.inputs["b"].startswith("is not what was merged: fingerprint ")
    found = verify(merged, base_state, {name: task_states[name] for name in "ac"})
    assert found.inputs == {"b": "is missing."}
    found = verify(merged, base_state, task_states | {"d": other})
    assert found.inputs == {"d": "was not merged."}
    assert not found.passed


@pytest.fixture
def merged_by_an_earlier_version(merged, vectors):
    """The merge with fingerprints by SHA-256, as they were."""
    base, tasks = vectors.fingerprints("SHA-256")
    made = replace(Provenance.from_metadata(metadata_of(merged)), base=base, tasks=tasks)
    return write_safetensors(load_file(merged), merged, made.to_metadata())


def test_inputs_of_a_file_of_an_earlier_version_are_known(
    merged_by_an_earlier_version, base_state, task_states, fine_tuned
):
    path, other = merged_by_an_earlier_version, fine_tuned(base_state, 9)
    assert verify(path, base_state, task_states).passed
    assert list(verify(path, other, task_states).inputs) == ["base"]
    found = verify(path, base_state, task_states | {"a": task_states["b"], "c": other})
    assert found.inputs["a"] == "holds the weights that were merged as 'b'."
    assert found.inputs["c"].startswith("is not what was merged")


def test_swapped_and_renamed_tasks_are_named_and_the_merge_is_made_of_them_as_it_was(merged, base_state, task_states):
    swapped = {"a": task_states["b"], "b": task_states["a"], "c": task_states["c"]}
    found = verify(merged, base_state, swapped)
    assert found.inputs == {
        "a": "holds the weights that were merged as 'b'.",
        "b": "holds the weights that were merged as 'a'.",
    }
    assert not found.passed
    assert found.compared == found.tensors
    assert not found.differing
    found = verify(merged, base_state, {"a": task_states["a"], "bb": task_states["b"], "c": task_states["c"]})
    assert found.inputs == {
        "b": "is missing; its weights are given as 'bb'.",
        "bb": "was not merged. Did you mean 'b'?",
    }
    assert not found.differing


def test_the_order_in_which_tasks_are_given_does_not_matter(merged, base_state, task_states):
    assert verify(merged, base_state, dict(reversed(task_states.items()))).passed


def test_shards(vectors, base_state, task_states, out, tmp_path):
    index = save_merged(vectors, MergeRecipe(), out, max_shard_size=100)
    for path in (index, out, tmp_path):
        found = verify(path, base_state, task_states)
        assert found.passed
        assert found.files > 1
    assert "files) is whole" in verification_text(found)
    shards = sorted(tmp_path.glob("*-of-*.safetensors"))
    kept = shards[1].read_bytes()
    flip(shards[1])
    assert list(verify(index).damaged) == [str(shards[1])]
    shards[1].write_bytes(kept)
    assert verify(index).passed
    (tmp_path / "other").mkdir()
    save_merged(vectors, MergeRecipe(scale=0.7), tmp_path / "other" / out.name, max_shard_size=100)
    shutil.copy(tmp_path / "other" / shards[1].name, shards[1])
    found = verify(index)
    assert list(found.damaged) == [str(shards[1])]
    assert "of another model" in verification_text(found)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match="missing"):
        verify(index)


MADE = {
    "pruned": (MergeRecipe("task_arithmetic", ratio=0.5), {}),
    "random": (MergeRecipe("dare", score="random", ratio=0.5, seed=5), {}),
    "elements": (MergeRecipe("ties", elements={"ratio": 0.3}), {}),
    "parts": (MergeRecipe("magnitude", ratio=0.5, prune_on="parts"), {}),
    "lines": (MergeRecipe("task_arithmetic", layer_scaling={"name": "lines"}), {}),
    "coefficients": (MergeRecipe("task_arithmetic", layer_scaling={"blocks.0.attn.qkv": 0.3}), {}),
    "of a task": (MergeRecipe("emr", task="b", scale=0.8), {}),
    "float64": (MergeRecipe("iso_c", dtype="float64", granularity="block", ratio=0.3), {}),
}


@pytest.mark.parametrize("how", MADE)
def test_what_a_recipe_can_ask_for(how, out):
    recipe, options = MADE[how]
    vectors = vectors_for("ties")
    save_merged(vectors, recipe, out, **options)
    found = verify(out, *inputs_of(vectors))
    assert found.passed, verification_text(found)
    assert verify(out, *inputs_of(vectors), sample=4).passed


def test_a_mask_that_was_given_and_layers_of_ones_own(out, base_state, task_states, vectors):
    names = list(reversed(vectors.names))
    layers = layers_from_names(names, "tensor")
    mask = LayerMask(vectors.tasks, layers.names, torch.tensor([[True, False, True, False, False]] * 3))
    save_merged(vectors, MergeRecipe("ties", granularity="tensor"), out, layers, mask=mask)
    assert Provenance.from_metadata(metadata_of(out)).layers == {name: [name] for name in names}
    assert verify(out, base_state, task_states).passed


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("recipe", [MergeRecipe("ties", ratio=0.5), MergeRecipe(layer_scaling={"name": "lines"})])
def test_no_model_is_needed_for_what_a_model_told(kind, recipe, out):
    model = make_model(kind)
    if recipe.layer_scaling is not None and kind != "ViT":
        recipe = MergeRecipe("dare", ratio=0.5, granularity="block")
    base, tasks = states_of(model)
    save_merged(TaskVectors.open(base, tasks, model=model), recipe, out, trace_layers(model, recipe.granularity))
    for options in ({}, {"model": make_model(kind)}, {"sample": 3}):
        found = verify(out, base, tasks, **options)
        assert found.passed, verification_text(found)
    module = MergeModule(model, TaskVectors.open(base, tasks, model=model), recipe).merge_()
    module.save_merged(out)  # without classifiers that are the tasks' own
    found = verify(out, base, tasks)
    assert found.passed, verification_text(found)


def test_what_was_excluded_need_not_be_said_again(out, base_state, task_states):
    tasks = {
        task: {**state, "head.weight": torch.randn(seed, 5)}
        for seed, (task, state) in enumerate(task_states.items(), 1)
    }
    save_merged(TaskVectors.open(base_state, tasks, exclude=["head.*"]), MergeRecipe(), out)
    assert verify(out, base_state, tasks).passed
    assert verify(out, base_state, tasks, exclude=["head.*"]).passed


def test_a_modules_file_and_what_was_changed_after_the_merge(vit, vit_vectors, fine_tuned, out):
    base, tasks = inputs_of(vit_vectors)
    module = MergeModule(vit, vit_vectors, MergeRecipe("ties", ratio=0.5)).merge_()
    module.save_merged(out)
    found = verify(out, base, tasks)
    assert found.passed, verification_text(found)
    module.model.norm.bias.data.add_(1)
    module.save_merged(out)
    found = verify(out, base, tasks)
    assert not found.passed
    assert list(found.differing) == ["norm.bias"]
    assert (
        "norm.bias: 48 of 48 elements differ, by up to 1 (changed after the merge, says the file)"
        in verification_text(found)
    )


def test_a_module_that_was_held_in_a_narrower_dtype_is_equal_but_for_its_rounding(vit, vit_vectors, out):
    base, tasks = inputs_of(vit_vectors)
    module = MergeModule(vit.bfloat16(), vit_vectors, MergeRecipe("task_arithmetic")).merge_()
    module.save_merged(out)
    assert Provenance.from_metadata(metadata_of(out)).evaluated_in == ["bfloat16"]
    found = verify(out, base, tasks)
    assert found.passed, verification_text(found)
    edited(out, **{"norm.bias": lambda tensor: tensor + 0.5})
    assert list(verify(out, base, tasks).differing) == ["norm.bias"]


def test_data_statistics_are_needed_and_known(out, tmp_path):
    vectors = vectors_for("fisher")
    data = statistics_for("fisher", vectors)
    save_merged(vectors, "fisher", out, data=data)
    file = write_data_statistics(data, tmp_path / "fisher.safetensors")
    assert verify(out, *inputs_of(vectors), data=read_data_statistics(file)).passed
    with pytest.raises(ValueError, match="needs statistics=... or data=..."):
        verify(out, *inputs_of(vectors))
    other = {task: {name: value + 1 for name, value in found.items()} for task, found in data.items()}
    found = verify(out, *inputs_of(vectors), data=other)
    assert list(found.inputs) == ["data"]
    assert not found.passed
    made = replace(Provenance.from_metadata(metadata_of(out)), data=fingerprint_of_data(data, "SHA-256"))
    write_safetensors(load_file(out), out, made.to_metadata())
    assert verify(out, *inputs_of(vectors), data=data).passed
    assert list(verify(out, *inputs_of(vectors), data=other).inputs) == ["data"]
    assert verify(file).passed
    with pytest.raises(CheckpointError, match="do not say how it was made"):
        verify(file, *inputs_of(vectors))


def task_vector(base, tuned, path, dtype=torch.float32, density=1.0, tensors=None):
    vector = {name: tuned[name] - base[name] for name in base}
    every = torch.cat([tensor.abs().flatten() for tensor in vector.values()]).sort(descending=True).values
    for tensor in vector.values():
        tensor[tensor.abs() < every[round(len(every) * density) - 1]] = 0
    opened = open_checkpoint(base)
    made = Provenance(
        kind="task_vector",
        base=fingerprint(opened),
        base_tensors=tensor_fingerprints(opened),
        tasks={"a": None},
        density=density,
    )
    return write_safetensors({name: tensor.to(dtype) for name, tensor in vector.items()}, path, made.to_metadata())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_a_task_vector(dtype, density, base_state, task_states, fine_tuned, tmp_path):
    path = task_vector(base_state, task_states["a"], tmp_path / "task_vector.safetensors", dtype, density)
    found = verify(path, base_state, {"a": task_states["a"]})
    assert found.passed, verification_text(found)
    assert "It is the task vector of a" in verification_text(found)
    assert verify(path).passed
    assert set(verify(path, base_state, {"a": task_states["b"]}).differing) >= set(base_state) - {"gain"}
    assert list(verify(path, fine_tuned(base_state, 9), {"a": task_states["a"]}).inputs) == ["base"]
    assert list(verify(path, base_state, {"b": task_states["a"]}).inputs) == ["a", "b"]
    with pytest.raises(ValueError, match="name these too"):
        verify(path, base_state)

    def without_the_largest(tensor):
        tensor.view(-1)[tensor.abs().argmax()] = 0
        return tensor

    edited(path, **{"fc.weight": without_the_largest})
    assert list(verify(path, base_state, {"a": task_states["a"]}).differing) == ["fc.weight"]


def test_a_task_vectors_base(base_state, fine_tuned, tmp_path):
    path = write_safetensors(base_state, tmp_path / "base.safetensors", Provenance(kind="base").to_metadata())
    assert verify(path, base_state).passed
    changed = {**base_state, "gain": base_state["gain"] + 1}
    assert list(verify(path, changed).differing) == ["gain"]


def test_files_of_earlier_versions(merged, base_state, task_states):
    about = metadata_of(merged)
    kept = {key: about[key] for key in about if key not in ("lwptv_roles", "lwptv_excluded", *CHECKSUM_KEYS)}
    save_file(load_file(merged), merged, kept)
    found = verify(merged)
    assert not found.passed
    assert found.unchecked == (str(merged),)
    assert "it has no checksum" in verification_text(found)
    assert verify(merged, base_state, task_states).passed
    assert not verify(merged, base_state, task_states, sample=2).passed


def test_a_mask_of_layers_that_are_not_there_is_told(vectors, base_state, task_states, out):
    save_merged(vectors, MergeRecipe(ratio=0.5), out)
    about = metadata_of(out)
    about["lwptv_mask"] = json.dumps({task: ["stems"] for task in task_states})
    save_file(load_file(out), out, about)
    with pytest.raises(CheckpointError, match=r"keeps the layer 'stems', which the base has not\. Did you mean 'stem'"):
        verify(out, base_state, task_states)
    del about["lwptv_mask"]
    save_file(load_file(out), out, about)
    with pytest.raises(CheckpointError, match="no mask stands in its metadata"):
        verify(out, base_state, task_states)


def test_a_file_that_does_not_say_how_it_was_made(base_state, task_states, tmp_path):
    save_file(base_state, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="plain.safetensors: its metadata do not say how it was made; expected"):
        verify(tmp_path / "plain.safetensors", base_state, task_states)
    torch.save(base_state, tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match="expected a .safetensors file"):
        verify(tmp_path / "plain.pt")
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        verify(tmp_path / "none.safetensors")


def test_wrong_arguments(merged, base_state, task_states):
    with pytest.raises(ValueError, match="tasks need the base"):
        verify(merged, None, task_states)
    with pytest.raises(ValueError, match="sample must be at least 1, not 0"):
        verify(merged, base_state, task_states, sample=0)
    with pytest.raises(ValueError, match="made of a base and 3 tasks"):
        verify(merged, base_state)


def test_a_rule_that_is_not_registered_here_is_named(merged, base_state, task_states):
    about = metadata_of(merged)
    about["lwptv_recipe"] = json.dumps({"rule": {"name": "tie"}})
    save_file(load_file(merged), merged, about)
    assert "by {'name': 'tie'}" in verification_text(verify(merged))
    with pytest.raises(CheckpointError, match=r"its recipe cannot be used here: unknown merging rule 'tie'\. Did you"):
        verify(merged, base_state, task_states)


def test_a_sample_is_drawn_by_its_seed(base_state, task_states, merged):
    edited(merged, gain=lambda tensor: tensor + 1)
    outcomes = {seed: verify(merged, base_state, task_states, sample=1, seed=seed).passed for seed in range(12)}
    assert set(outcomes.values()) == {True, False}
    assert outcomes == {seed: verify(merged, base_state, task_states, sample=1, seed=seed).passed for seed in outcomes}


def test_the_whole_model_is_never_read_at_once(counting_checkpoint, tmp_path):
    state = random_state(0, shapes=SHAPES)
    base, reads = counting_checkpoint(state)
    tuned, _ = counting_checkpoint({name: tensor + 1 for name, tensor in state.items()})
    path = save_merged(TaskVectors.open(base, {"a": tuned}), MergeRecipe(), tmp_path / "m.safetensors")
    reads.clear()
    assert verify(path, base, {"a": tuned}, sample=1).passed
    assert sum(reads.values()) < 2 * len(state)  # the fingerprint is remembered, and one tensor is made

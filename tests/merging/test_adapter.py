"""A merge as a LoRA adapter, against what PEFT makes of it."""

import copy
import json
import re

import pytest
import torch
from _helpers.lora_out import (
    every_kind,
    largest_difference,
    open_clip_folder,
    renamed,
    timm_model,
    transformers_inputs,
    transformers_model,
    tuned,
    with_peft,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lwptv_lightning import Execution, LayerMask, MergeRecipe, Provenance, TaskVectors, merge, open_checkpoint
from lwptv_lightning import save_adapter as save
from lwptv_lightning.merging import parse_rank

pytest.importorskip("peft")
RECIPE = MergeRecipe("ties", 0.7)


@torch.no_grad()
def check_as_peft_loads_it(model, run, folder, dense, *, unmerged=True):
    """PEFT's model, before and after it merges, is the dense merge."""
    model = copy.deepcopy(model)
    expected = copy.deepcopy(model)
    named = renamed(dense, model)
    expected.load_state_dict(named, strict=False)
    wanted = run(expected)
    adapted = with_peft(model, folder)
    if unmerged:
        torch.testing.assert_close(run(adapted), wanted, rtol=0, atol=1e-5)
    merged = adapted.merge_and_unload()
    assert largest_difference(merged.state_dict(), named) < 1e-6
    torch.testing.assert_close(run(merged), wanted, rtol=0, atol=1e-5)


def vectors_of(net, **options):
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return TaskVectors.open(state, {task: tuned(state, seed) for seed, task in enumerate("ab", 1)}, **options)


@pytest.mark.parametrize("told", [True, False])
def test_at_full_rank_every_kind_of_tensor_is_as_in_the_dense_merge(told, tmp_path):
    model, ids = every_kind()
    vectors = vectors_of(model, model=model)
    recipe = MergeRecipe(scale=0.5)
    saved = save(vectors, recipe, tmp_path / "adapter", "full", model=model if told else None)
    assert saved.told_by == ("model" if told else "names")
    assert saved.error < 1e-6
    assert not saved.dropped
    dense = merge(vectors, recipe)
    # Names do not tell that the model takes a layer's weight without calling the layer.
    check_as_peft_loads_it(model, lambda net: net(ids), tmp_path / "adapter", dense, unmerged=told)
    layers = {layer.name for layer in saved.layers}
    if told:
        assert layers == {
            "words.weight",
            "attention.in_proj_weight",
            "block.fc.weight",
            "block.out.weight",
            "conv.weight",
            "first.weight",
        }
        assert set(saved.modules) == {"block.norm", "norm", "bn", "grouped", "dilated", "straight"}
        assert {"token", "gamma.0", "attention.out_proj.weight", "block.fc.bias"} <= set(saved.whole)
    else:
        assert layers == {"block.fc.weight", "first.weight", "straight.weight"}


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet"])
def test_at_full_rank_a_timm_model_is_the_dense_merge(name, tmp_path):
    model, images = timm_model(name)
    vectors = vectors_of(model, model=model)
    saved = save(vectors, RECIPE, tmp_path / "adapter", "full", model=model)
    assert len(saved.layers) > 5
    check_as_peft_loads_it(model, lambda net: net(images), tmp_path / "adapter", merge(vectors, RECIPE))


TRANSFORMERS = [
    "GPT2LMHeadModel",
    "BertForSequenceClassification",
    "BertForMaskedLM",
    "ViTForImageClassification",
    "CLIPModel",
    "WhisperForConditionalGeneration",  # whose encoder asks its convolutions for their strides
    "T5ForConditionalGeneration",
]
TASKS = {"GPT2LMHeadModel": "CAUSAL_LM", "T5ForConditionalGeneration": "SEQ_2_SEQ_LM"}
"""PEFT's classes for Whisper's task pass on tokens, which Whisper doesn't take."""


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_at_full_rank_a_transformers_model_is_the_dense_merge(name, tmp_path):
    pytest.importorskip("transformers")
    model = transformers_model(name)
    model.save_pretrained(tmp_path / "base")
    state = load_file(tmp_path / "base/model.safetensors")
    vectors = TaskVectors.open(tmp_path / "base", {task: tuned(state, seed) for seed, task in enumerate("ab", 1)})
    saved = save(vectors, RECIPE, tmp_path / "adapter", "full")
    assert saved.told_by == "model"
    inputs = transformers_inputs(name)

    def run(net):
        found = net(**inputs)
        return found.logits_per_image if name == "CLIPModel" else found.logits

    check_as_peft_loads_it(model, run, tmp_path / "adapter", merge(vectors, RECIPE))
    again = TaskVectors.open(tmp_path / "base", {"merged": tmp_path / "adapter"})
    dense = merge(vectors, RECIPE)
    assert largest_difference(merge(again, MergeRecipe(scale=1.0)), dense) < 1e-6
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert config["fan_in_fan_out"] == (name == "GPT2LMHeadModel")
    assert config["task_type"] == TASKS.get(name)


def test_at_full_rank_an_open_clip_model_is_the_dense_merge(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    folder = open_clip_folder(tmp_path / "base")
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    vectors = TaskVectors.open(folder, {"a": tuned(load_file(folder / "open_clip_model.safetensors"), 1)})
    saved = save(vectors, RECIPE, tmp_path / "adapter", "full")
    assert any(layer.name.endswith("attn.in_proj_weight") for layer in saved.layers)

    def run(net):
        images, texts = net(torch.ones(2, 3, 16, 16), torch.arange(16).reshape(2, 8))[:2]
        return images @ texts.T

    dense = merge(vectors, RECIPE)
    check_as_peft_loads_it(model, run, tmp_path / "adapter", dense)
    again = TaskVectors.open(folder, {"merged": tmp_path / "adapter"})
    assert largest_difference(merge(again, MergeRecipe(scale=1.0)), dense) < 1e-6


def linear(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5, **options), nn.Linear(5, 4, **options))


def factors_in(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("rank", [1, 3, "3", 0.8, "0.8"])
def test_factors_are_the_best_of_their_rank_and_the_error_is_theirs(rank, tmp_path):
    model = linear(bias=False)
    vectors = vectors_of(model)
    saved = save(vectors, MergeRecipe(scale=0.5), tmp_path / "adapter", rank, model=model)
    merged, found = merge(vectors, MergeRecipe(scale=0.5)), factors_in(tmp_path / "adapter")
    lost = 0.0
    for layer in saved.layers:
        delta = merged[layer.name].double() - vectors.base(layer.name).double()
        path = layer.name.removesuffix(".weight")
        b, a = (found[f"base_model.model.{path}.lora_{factor}.weight"].double() for factor in "BA")
        squares = torch.linalg.svdvals(delta).square()
        if float(rank) < 1:
            assert squares[: layer.rank].sum() >= 0.8 * squares.sum() > squares[: layer.rank - 1].sum()
        else:
            assert layer.rank == int(rank)
        assert len(a) == layer.rank
        assert layer.error == pytest.approx(float((delta - b @ a).norm() / delta.norm()), rel=1e-4)
        assert layer.error == pytest.approx(float(squares[layer.rank :].sum() / squares.sum()) ** 0.5, rel=1e-4)
        lost += float((delta - b @ a).norm() ** 2)
    whole = sum(layer.norm**2 for layer in saved.layers)
    assert saved.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert saved.worst.error == max(layer.error for layer in saved.layers)
    told = json.loads((tmp_path / "adapter/lwptv_adapter.json").read_text())
    assert told["rank"] == rank
    assert told["error"] == saved.error
    assert [layer["error"] for layer in told["layers"]] == [layer.error for layer in saved.layers]


def test_a_rank_beyond_a_layers_is_cut_to_it(tmp_path):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    vectors = vectors_of(model)
    saved = save(vectors, RECIPE, tmp_path / "adapter", 4)
    assert {layer.name: layer.rank for layer in saved.layers} == {"0.weight": 4, "1.weight": 2}
    adapted = with_peft(model, tmp_path / "adapter")
    assert {name: module.r["default"] for name, module in adapted.base_model.model.named_children()} == {"0": 4, "1": 2}
    assert {module.scaling["default"] for module in adapted.base_model.model} == {1.0}


def test_paths_that_end_alike_are_told_apart(tmp_path):
    model = nn.ModuleDict({"fc": nn.Linear(3, 3), "a": nn.ModuleDict({"fc": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})})
    model["norm"] = nn.LayerNorm(2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed = {name: tensor + torch.rand(tensor.shape) for name, tensor in state.items() if not name.startswith("a.")}
    vectors = TaskVectors.open(state, {"x": state | changed})
    save(vectors, MergeRecipe(scale=1.0), tmp_path / "adapter", "full", model=model)
    adapted = with_peft(copy.deepcopy(model), tmp_path / "adapter")
    assert isinstance(adapted.base_model.model["a"]["fc"], nn.Linear)
    assert not isinstance(adapted.base_model.model["fc"], nn.Linear)
    merged = adapted.merge_and_unload().state_dict()
    assert largest_difference(merged, merge(vectors, MergeRecipe(scale=1.0))) < 1e-6


def test_names_that_peft_has_for_itself_are_no_obstacle(tmp_path):
    model = nn.ModuleDict({"default": nn.LayerNorm(2), "weight": nn.Linear(2, 2), "a+b": nn.Linear(2, 2)})
    model["modules_to_save"] = nn.LayerNorm(2)
    vectors = vectors_of(model)
    save(vectors, MergeRecipe(scale=0.5), tmp_path / "adapter", "full", model=model)
    merged = with_peft(copy.deepcopy(model), tmp_path / "adapter").merge_and_unload().state_dict()
    assert largest_difference(merged, merge(vectors, MergeRecipe(scale=0.5))) < 1e-6


def test_layers_whose_tasks_are_all_pruned_have_no_factors(tmp_path):
    vectors = vectors_of(linear())
    mask = LayerMask(("a", "b"), ("0", "1"), torch.tensor([[True, False], [True, False]]))
    saved = save(vectors, RECIPE, tmp_path / "adapter", 2, mask=mask)
    assert [layer.name for layer in saved.layers] == ["0.weight"]
    assert not any(name.startswith("base_model.model.1.") for name in factors_in(tmp_path / "adapter"))


def test_where_nothing_changed_one_layer_has_a_product_of_zeros(tmp_path):
    model = linear()
    vectors = vectors_of(model)
    saved = save(vectors, MergeRecipe(scale=0.0), tmp_path / "adapter", 2)
    assert saved.error == 0
    assert [(layer.rank, layer.norm, layer.error) for layer in saved.layers] == [(1, 0.0, 0.0)]
    merged = with_peft(copy.deepcopy(model), tmp_path / "adapter").merge_and_unload().state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_have_a_dtype_of_their_own_whose_rounding_is_reported(dtype, tmp_path):
    vectors = vectors_of(linear().bfloat16())
    saved = save(vectors, RECIPE, tmp_path / "adapter", "full", stored_dtype=dtype)
    found = factors_in(tmp_path / "adapter")
    assert {tensor.dtype for name, tensor in found.items() if ".lora_" in name} == {dtype}
    assert {tensor.dtype for name, tensor in found.items() if ".lora_" not in name} == {torch.bfloat16}
    if dtype == torch.float32:  # in which it was merged
        assert saved.error == 0
    else:
        assert 0 < saved.error < torch.finfo(dtype).eps


def test_factors_that_overflow_their_dtype_are_refused(tmp_path):
    base = {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}
    vectors = TaskVectors.open(base, {"a": {"fc.weight": torch.full((2, 2), 1e30), "fc.bias": torch.zeros(2)}})
    with pytest.raises(
        ValueError, match=r"the factors of 'fc.weight' would overflow: 1e\+15 is beyond 65504, .*another dtype"
    ):
        save(vectors, MergeRecipe(scale=1.0), tmp_path / "adapter", 1, stored_dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_tied_weights_are_held_whole(tmp_path):
    model = nn.ModuleDict({"first": nn.Linear(3, 3), "words": nn.Embedding(4, 3), "out": nn.Linear(3, 4, bias=False)})
    model["out"].weight = model["words"].weight
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    experts = {task: tuned(state, seed) for seed, task in enumerate("ab")}
    experts = {task: {**expert, "out.weight": expert["words.weight"].clone()} for task, expert in experts.items()}
    vectors = TaskVectors.open(state, experts, model=model)
    saved = save(vectors, RECIPE, tmp_path / "adapter", 1, model=model)
    assert {"words.weight", "out.weight"} <= set(saved.whole)
    dense = merge(vectors, RECIPE)
    adapted = with_peft(copy.deepcopy(model), tmp_path / "adapter")
    for name in ("words", "out"):
        assert torch.equal(adapted.base_model.model[name].weight, dense["words.weight"])


def test_what_the_adapter_cannot_hold_is_refused_or_dropped_by_name(tmp_path):
    model = linear(bias=False)
    state = {**model.state_dict(), "experts.0.w": torch.zeros(2), "steady": torch.zeros(2)}
    expert = {**tuned(state, 1), "steady": torch.zeros(2)}
    vectors = TaskVectors.open(state, {"a": expert})
    with pytest.raises(ValueError, match=r"cannot hold what changed in experts\.0\.w\. .*drop_rest=True"):
        save(vectors, MergeRecipe(), tmp_path / "adapter", "full", model=model)
    assert not (tmp_path / "adapter").exists()
    saved = save(vectors, MergeRecipe(scale=1.0), tmp_path / "adapter", "full", model=model, drop_rest=True)
    whole = torch.cat([(expert[name] - state[name]).flatten() for name in state]).norm()
    share = float((expert["experts.0.w"]).norm() / whole)
    assert saved.dropped == pytest.approx({"experts.0.w": share}, rel=1e-5)
    assert saved.error == pytest.approx(share, rel=1e-5)


def test_a_model_without_a_layer_to_adapt_is_refused(tmp_path):
    vectors = vectors_of(nn.LayerNorm(3))
    for model, words in ((None, "the names tell no linear"), (nn.LayerNorm(3), "LayerNorm has no linear")):
        with pytest.raises(ValueError, match=f"no adapter can be made: {words}"):
            save(vectors, RECIPE, tmp_path / "adapter", 1, model=model)


def test_a_model_of_other_shapes_is_refused(tmp_path):
    other = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 4))
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(5, 6\), and \(5, 7\) in the model, Sequential"):
        save(vectors_of(linear()), RECIPE, tmp_path / "adapter", 1, model=other)


def test_a_base_of_the_hub_is_named_as_there(tmp_path):
    folder = tmp_path / "models--owner--some--model/snapshots/0123"
    folder.mkdir(parents=True)
    state = {name: tensor.clone() for name, tensor in linear().state_dict().items()}
    save_file(state, folder / "model.safetensors")
    save(TaskVectors.open(folder, {"a": tuned(state, 1)}), RECIPE, tmp_path / "adapter", 1)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/some--model"


@pytest.mark.parametrize("rank", [0, -1, 1.0, 2.5, 0.0, True, None, "x", "0", "1.0", "-3", "", "nan", float("inf")])
def test_a_rank_is_a_number_a_share_or_full(rank, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"or 'full', not {rank!r}.")):
        save(vectors_of(linear()), RECIPE, tmp_path / "adapter", rank)
    assert not (tmp_path / "adapter").exists()
    assert [parse_rank(value) for value in ("full", " 7 ", "1e-3", 9)] == [None, 7, 0.001, 9]


def test_wrong_arguments_are_refused(tmp_path):
    vectors = vectors_of(linear())
    with pytest.raises(ValueError, match="stored_dtype must be one of"):
        save(vectors, RECIPE, tmp_path / "adapter", 1, stored_dtype=torch.int8)
    with pytest.raises(TypeError, match="model must be a module"):
        save(vectors, RECIPE, tmp_path / "adapter", 1, model="vit")
    with pytest.raises(TypeError, match="save_adapter has no argument 'ranc'"):
        save(vectors, RECIPE, tmp_path / "adapter", 1, ranc=1)


def test_a_folder_is_replaced_only_where_that_is_said_and_it_holds_an_adapter(tmp_path):
    vectors, folder = vectors_of(linear()), tmp_path / "adapter"
    save(vectors, RECIPE, folder, 1)
    before, key = factors_in(folder), "base_model.model.0.lora_A.weight"
    with pytest.raises(FileExistsError, match="exists"):
        save(vectors, MergeRecipe(scale=1.0), folder, 1)
    assert all(map(torch.equal, before.values(), factors_in(folder).values()))
    save(vectors, MergeRecipe(scale=1.0), folder, 1, overwrite=True)
    assert not torch.equal(before[key], factors_in(folder)[key])
    (folder / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="mine"):
        save(vectors, RECIPE, folder, 1, overwrite=True)
    assert (folder / "mine.txt").read_text() == "kept"


def test_what_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    vectors = vectors_of(linear())
    monkeypatch.setattr("lwptv_lightning.merging.factors.SafetensorsWriter", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(vectors, RECIPE, tmp_path / "adapter", 1)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_says_how_it_was_made(tmp_path):
    vectors = vectors_of(linear())
    save(vectors, MergeRecipe("ties", 0.7, ratio=0.5), tmp_path / "adapter", 1)
    with safe_open(tmp_path / "adapter/adapter_model.safetensors", "pt") as file:
        metadata = file.metadata()
    made = Provenance.from_metadata(metadata)
    assert made.kind == "adapter"
    assert set(made.tasks) == {"a", "b"}
    assert MergeRecipe.from_dict(made.recipe) == MergeRecipe("ties", 0.7, ratio=0.5)
    assert json.loads(metadata["lwptv_adapter"])["rank"] == 1


def test_what_is_merged_on_a_device_in_blocks_is_the_same(tmp_path):
    vectors = vectors_of(linear())
    for name, execution in (("a", Execution()), ("b", Execution(device=torch.device("cpu"), block_bytes=64))):
        save(vectors, MergeRecipe("task_arithmetic"), tmp_path / name, 2, execution=execution)
    first, second = factors_in(tmp_path / "a"), factors_in(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_library_reads_it_again_as_the_same_differences(tmp_path):
    model, _ = every_kind()
    vectors = vectors_of(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for rank in ("full", 2):
        folder = tmp_path / str(rank)
        save(vectors, MergeRecipe(scale=0.5), folder, rank, model=model)
        merged = with_peft(copy.deepcopy(model), folder).merge_and_unload().state_dict()
        again = TaskVectors.open(state, {"merged": folder}, model=model)
        for name in again.names + again.averaged:
            torch.testing.assert_close(again.stack(name)[0], merged[name] - state[name], rtol=0, atol=1e-6)
    assert open_checkpoint(folder).metadata["lwptv_kind"] == "adapter"


def test_a_configuration_of_which_no_model_is_built_is_said(tmp_path):
    state = {name: tensor.clone() for name, tensor in linear().state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["Mine"], "model_type": "mine"}')
    vectors = TaskVectors.open(tmp_path, {"a": tuned(state, 1)})
    with pytest.warns(UserWarning, match="transformers builds no model of it .* names and shapes alone tell"):
        saved = save(vectors, RECIPE, tmp_path / "adapter", 1)
    assert saved.told_by == "names"


def test_a_base_of_a_single_file_is_named(tmp_path):
    model = linear()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "base.safetensors")
    vectors = TaskVectors.open(tmp_path / "base.safetensors", {"a": tuned(state, 1)})
    save(vectors, RECIPE, tmp_path / "adapter", 1)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base.safetensors")

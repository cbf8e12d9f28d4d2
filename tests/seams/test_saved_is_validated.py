"""What is saved is what was validated, in the base's dtypes, and says of itself what it is."""

import copy

import pytest
import torch
from _helpers.models import MODELS, make_model, states_of, vectors_of_model
from _helpers.states import as_bytes, noise
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, Provenance, TaskVectors, merge, open_checkpoint, trace_layers
from lwptv_lightning.callbacks import CollectDataStatistics, OnlineMerge, PruneAndMerge, RecalibrateBatchNorm
from lwptv_lightning.search import sweep

A, B = MergeRecipe("ties", ratio=0.5), MergeRecipe("task_arithmetic", scale=0.25)


def images(seed=0, length=6, labels=3):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(length, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(inputs, torch.arange(length) % labels), batch_size=3)


@pytest.fixture(params=MODELS)
def model(request):
    return make_model(request.param)


def module_of(model, recipe=A, dtype=None, **options):
    base, tasks = states_of(model)
    if dtype is not None:
        base, *others = ({name: cast(value, dtype) for name, value in each.items()} for each in (base, *tasks.values()))
        tasks = dict(zip(tasks, others, strict=True))
    vectors = TaskVectors.open(base, tasks, model=model)
    return MergeModule(copy.deepcopy(model), vectors, recipe, **options)


def cast(value, dtype):
    return value.to(dtype) if value.is_floating_point() else value


def loaders():
    return {"id/a": images(1), "id/b": images(2)}


def saved(module, folder, name="merged"):
    """The tensors of a file and what it says of itself."""
    checkpoint = open_checkpoint(module.save_merged(folder / f"{name}.safetensors"))
    return {name: checkpoint.read(name) for name in checkpoint.names}, Provenance.of(checkpoint)


def assert_holds(tensors, module, expected=None):
    """Check that a file has what a module holds, and what a merge makes, to the bit, in the base's dtypes."""
    state = module.model.state_dict()
    assert tensors.keys() == state.keys() - {*module.heads.instead_of, *module.contents.apart}
    headers = module.vectors.headers if module.held_vectors else {}
    for name, value in tensors.items():
        assert value.dtype == (headers[name].dtype if name in headers else value.dtype)
        assert as_bytes(state[name].to(value.dtype)) == as_bytes(value), name
        if expected is not None:
            assert as_bytes(expected[name]) == as_bytes(value), name


def merged(module, recipe):
    return merge(module.vectors, recipe, trace_layers(module.model, recipe.granularity))


def test_the_recipe_of_a_callback_is_the_files(model, make_trainer, tmp_path):
    module = module_of(model)
    for recipe in (B, A, B.replace(scale=0.5)):  # one after the other
        make_trainer(callbacks=[PruneAndMerge(recipe=recipe)]).validate(module, loaders(), verbose=False)
        tensors, provenance = saved(module, tmp_path)
        assert_holds(tensors, module, merged(module, recipe))
        assert MergeRecipe.from_dict(provenance.recipe) == recipe
        assert provenance.scale == recipe.effective_scale
        assert (provenance.mask is None) == (recipe.ratio == 0)
        assert (provenance.changed, provenance.evaluated_in) == ([], [])
    module.recipe = A  # of the next merge
    assert MergeRecipe.from_dict(saved(module, tmp_path)[1].recipe) == B.replace(scale=0.5)


def test_the_task_vectors_of_a_callback_are_the_files(make_trainer, tmp_path):
    model = make_model("ViT")
    module = module_of(model)
    base, tasks = states_of(model, "xy")
    others = TaskVectors.open(base, {task: noise(state, 7) for task, state in tasks.items()}, model=model)
    make_trainer(callbacks=[PruneAndMerge(others)]).validate(module, loaders(), verbose=False)
    tensors, provenance = saved(module, tmp_path)
    assert_holds(tensors, module, merge(others, A, trace_layers(model)))
    assert provenance.tasks == others.fingerprints()[1]


def test_statistics_that_were_measured_are_the_files_which_says_so(make_trainer, tmp_path):
    module = module_of(make_model("ResNet"))
    callbacks = [RecalibrateBatchNorm(images(5))]
    make_trainer(callbacks=callbacks).validate(module, loaders(), verbose=False)
    tensors, provenance = saved(module, tmp_path)
    assert_holds(tensors, module)
    expected = merged(module, A)
    assert not torch.equal(tensors["bn1.running_mean"], expected["bn1.running_mean"])
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    assert {*provenance.changed} == {f"bn{number}.{kind}" for number in (1, 2) for kind in kinds}
    make_trainer().validate(module, loaders(), verbose=False)  # without measuring: as merged
    tensors, provenance = saved(module, tmp_path)
    assert_holds(tensors, module, expected)
    assert provenance.changed == []


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_are_the_bases_and_values_those_that_were_validated(precision, dtype, make_trainer, tmp_path):
    module = module_of(make_model("ResNet"), B, dtype)
    make_trainer(precision=precision).validate(module, loaders(), verbose=False)
    tensors, provenance = saved(module, tmp_path)
    assert_holds(tensors, module)
    assert {value.dtype for value in tensors.values() if value.is_floating_point()} == {dtype}
    narrow = {"bf16-true": ["bfloat16"], "16-true": ["float16"]}.get(precision, [])
    assert provenance.evaluated_in == (narrow if dtype == torch.float32 else [])
    assert provenance.changed == []
    module.trainer.save_checkpoint(tmp_path / "m.ckpt")
    loaded = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", model=make_model("ResNet"))
    again, provenance_again = saved(loaded, tmp_path, "again")
    assert again.keys() == tensors.keys()
    for name, value in tensors.items():
        assert as_bytes(again[name]) == as_bytes(value), name
    assert provenance_again.changed == []
    assert provenance_again.recipe == provenance.recipe


def test_weights_that_were_changed_by_hand_are_saved_and_told(model, make_trainer, tmp_path):
    module = module_of(model)
    make_trainer().validate(module, loaders(), verbose=False)
    name, parameter = next((n, p) for n, p in module.model.named_parameters() if n not in module.heads.instead_of)
    parameter.data.add_(1)
    tensors, provenance = saved(module, tmp_path)
    assert_holds(tensors, module)
    assert name in provenance.changed
    assert len(provenance.changed) < len(tensors) / 2
    module.trainer.save_checkpoint(tmp_path / "m.ckpt")
    loaded = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", model=copy.deepcopy(model))
    tensors_again, again = saved(loaded, tmp_path)
    assert_holds(tensors_again, loaded)
    assert again.changed == provenance.changed
    module.merge_()
    assert saved(module, tmp_path)[1].changed == []


def test_what_was_loaded_is_saved_as_it_is(model, make_trainer, tmp_path):
    module = module_of(model)
    make_trainer(callbacks=[PruneAndMerge(recipe=B)]).validate(module, loaders(), verbose=False)
    first, provenance = saved(module, tmp_path)
    module.trainer.save_checkpoint(tmp_path / "m.ckpt")
    for options in ({}, {"vectors": module.vectors}):
        loaded = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", model=copy.deepcopy(model), **options)
        tensors, again = saved(loaded, tmp_path)
        assert_holds(tensors, loaded, first)
        assert again == provenance
        figures = make_trainer().validate(loaded, loaders(), verbose=False)
        tensors, again = saved(loaded, tmp_path)
        assert_holds(tensors, loaded, first)
        assert again == provenance
        assert figures == make_trainer().validate(loaded, loaders(), verbose=False)
    # With the task vectors it can be merged anew.
    make_trainer(callbacks=[PruneAndMerge(recipe=A)]).validate(loaded, loaders(), verbose=False)
    tensors, again = saved(loaded, tmp_path)
    assert_holds(tensors, loaded, merged(loaded, A))
    assert MergeRecipe.from_dict(again.recipe) == A


def test_a_file_has_no_heads_and_no_classifier_that_was_only_initialised(make_trainer, tmp_path):
    heads = {name: nn.Linear(4, 3) for name in "ab"}
    module = module_of(make_model("ViT"), heads=heads)
    make_trainer().validate(module, loaders(), verbose=False)
    assert_holds(saved(module, tmp_path)[0], module, merged(module, A))


def test_what_only_looks_at_the_module_leaves_what_is_saved(make_trainer, tmp_path):
    model = make_model("ResNet")
    module = module_of(model)
    make_trainer(callbacks=[PruneAndMerge(recipe=B)]).validate(module, loaders(), verbose=False)
    before, provenance = saved(module, tmp_path)
    sweep(make_trainer(), module, {"other": A}, loaders())
    make_trainer(callbacks=[CollectDataStatistics("gram")]).validate(module, loaders(), verbose=False)
    with pytest.raises(ValueError, match="needs statistics"):
        make_trainer(callbacks=[PruneAndMerge(recipe="fisher")]).validate(module, loaders(), verbose=False)
    tensors, again = saved(module, tmp_path)
    assert_holds(tensors, module, before)
    assert again == provenance


def test_a_module_that_was_never_validated_is_merged_first(model, tmp_path):
    module = module_of(model)
    tensors, provenance = saved(module, tmp_path)
    assert_holds(tensors, module, merged(module, A))
    assert MergeRecipe.from_dict(provenance.recipe) == A


def test_online_merge_leaves_a_module_that_says_whose_weights_it_holds(make_trainer, tmp_path):
    from lightning.pytorch import LightningModule

    class Run(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_model("ViT").train()

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    run, experts = Run(), vectors_of_model(make_model("ViT"))
    callback = OnlineMerge(MergeModule(make_model("ViT"), experts, B), {"id/x": images()}, task="x", backbone="net")
    make_trainer(max_epochs=1, callbacks=[callback]).fit(run, images())
    tensors, provenance = saved(callback.module, tmp_path)
    with_task = experts.with_task("x", run.net)
    expected = merge(with_task, B)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert MergeRecipe.from_dict(provenance.recipe) == B
    assert provenance.tasks == {**experts.fingerprints()[1], "x": None}

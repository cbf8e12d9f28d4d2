import copy
import json
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lwptv_lightning import (
    LayerMask,
    MergeModule,
    MergeRecipe,
    PruneAndMerge,
    TaskVectors,
    merge,
    open_checkpoint,
    trace_layers,
)
from lwptv_lightning.registry import UnknownNameError

RECIPE = MergeRecipe("task_arithmetic", scale=0.5, ratio=0.5)


def draw(count, seed, classes=4, shape=(6,)):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator)
    return TensorDataset(inputs, torch.randint(0, classes, (count,), generator=generator))


def loader(count, seed, **options):
    return DataLoader(draw(count, seed, **options), batch_size=4)


LOADERS = {"id/a": (13, 1), "id/b.c": (5, 2), "ood/d": (8, 3)}


@pytest.fixture
def loaders():
    return {name: loader(*arguments) for name, arguments in LOADERS.items()}


def accuracy(classify, data):
    """Count correct samples one at a time."""
    with torch.no_grad():
        hits = [int(classify(inputs[None])[0].argmax()) == int(target) for inputs, target in data]
    return sum(hits) / len(hits)


def installed(model, vectors, recipe):
    merged = copy.deepcopy(model)
    merged.load_state_dict(merge(vectors, recipe, trace_layers(model, recipe.granularity)))
    return merged.eval()


def same_weights(module, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_entry_i_holds_loader_is_figures_and_the_averages(stage, model, vectors, loaders, make_trainer):
    oracle = installed(model, vectors, RECIPE)
    expected = {name: accuracy(oracle, loaders[name].dataset) for name in loaders}
    assert len({*expected.values(), accuracy(model, loaders["id/a"].dataset)}) > 2  # the figures tell something
    module = MergeModule(model, vectors, RECIPE, expert_accuracy={"a": 0.8, "b.c": 0.5})
    results = getattr(make_trainer(), stage)(module, loaders, verbose=False)

    averages = {
        "id/avg": (expected["id/a"] + expected["id/b.c"]) / 2,
        "ood/avg": expected["ood/d"],
        "id/normalized": (expected["id/a"] / 0.8 + expected["id/b.c"] / 0.5) / 2,
    }
    assert len(results) == len(loaders)
    for name, result in zip(loaders, results, strict=True):
        assert result == pytest.approx({name: expected[name]} | averages)
    joined = {name: figure for result in results for name, figure in result.items()}
    assert joined == pytest.approx(expected | averages)
    assert same_weights(module.model, oracle)


def test_predict_returns_the_logits(model, vectors, loaders, make_trainer):
    predictions = make_trainer().predict(MergeModule(model, vectors, RECIPE), loaders)
    oracle = installed(model, vectors, RECIPE)
    for batches, data in zip(predictions, loaders.values(), strict=True):
        torch.testing.assert_close(torch.cat(batches), oracle(data.dataset.tensors[0]).detach())


def test_metric_collection(model, vectors, make_trainer):
    metric = MetricCollection(
        {"top1": MulticlassAccuracy(4, average="micro"), "top4": MulticlassAccuracy(4, top_k=4, average="micro")}
    )
    module = MergeModule(model, vectors, RECIPE, metric=metric, expert_accuracy={"a": 0.5})
    data = {"id/a": loader(9, 1), "ood/d": loader(9, 2)}
    results = make_trainer().validate(module, data, verbose=False)
    top1 = accuracy(installed(model, vectors, RECIPE), data["id/a"].dataset)
    assert results[0]["id/a/top1"] == pytest.approx(top1)
    assert results[0]["id/normalized/top1"] == pytest.approx(top1 / 0.5)
    assert results[0]["id/a/top4"] == results[1]["ood/avg/top4"] == 1
    assert {name for result in results for name in result} == {
        *(f"{name}/{metric}" for name in ("id/a", "ood/d", "id/avg", "ood/avg") for metric in ("top1", "top4")),
        "id/normalized/top1",
        "id/normalized/top4",
    }


# Heads


def test_heads_are_chosen_by_the_loaders_name(model, vectors, loaders, make_trainer):
    heads = {name.partition("/")[2]: nn.Linear(4, classes) for classes, name in enumerate(loaders, start=5)}
    module = MergeModule(model, vectors, RECIPE, heads=heads)
    assert module.head_names == ("a", "b.c", "d")
    results = make_trainer().validate(module, loaders, verbose=False)
    oracle = installed(model, vectors, RECIPE)
    for (name, data), result in zip(loaders.items(), results, strict=True):
        head = heads[name.partition("/")[2]]
        assert result[name] == pytest.approx(accuracy(lambda x, head=head: head(oracle(x)), data.dataset))


def test_forward_applies_a_head_by_name(model, vectors):
    head = nn.Linear(4, 2)
    module = MergeModule(model, vectors, RECIPE, heads={"b.c": head}).merge_()
    inputs = torch.randn(3, 6)
    assert torch.equal(module(inputs, "b.c"), head(model(inputs)))
    assert torch.equal(module(inputs), model(inputs))
    with pytest.raises(UnknownNameError, match=r"unknown head 'b\.d'. Did you mean 'b\.c'"):
        module(inputs, "b.d")


def test_differing_timm_classifiers_are_the_heads(make_vit, fine_tuned, make_trainer, tmp_path):
    base = make_vit(num_classes=10)
    experts = {task: make_vit(num_classes=classes) for task, classes in (("a", 3), ("b.x", 5))}
    for seed, expert in enumerate(experts.values()):
        expert.load_state_dict(
            fine_tuned(base.state_dict(), seed)
            | {name: tensor for name, tensor in expert.state_dict().items() if name.startswith("head.")}
        )
    vectors = TaskVectors.open(base, experts, model=base)
    recipe = MergeRecipe("ties", ratio=0.25)
    module = MergeModule(copy.deepcopy(base), vectors, recipe)
    data = {
        f"id/{task}": loader(10, seed, classes=classes, shape=(3, 32, 32))
        for seed, (task, classes) in enumerate((("a", 3), ("b.x", 5)))
    }
    results = make_trainer().validate(module, data, verbose=False)

    merged = merge(vectors, recipe, trace_layers(base))
    for (task, expert), result in zip(experts.items(), results, strict=True):
        own_head = {name: tensor for name, tensor in expert.state_dict().items() if name.startswith("head.")}
        expert.load_state_dict(merged | own_head)
        assert result[f"id/{task}"] == pytest.approx(accuracy(expert, data[f"id/{task}"].dataset))
        images = data[f"id/{task}"].dataset.tensors[0]
        torch.testing.assert_close(module(images, task), expert(images))

    module.trainer.save_checkpoint(tmp_path / "m.ckpt")
    loaded = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", model=make_vit(num_classes=10, seed=1))
    assert loaded.head_names == ("a", "b.x")
    assert same_weights(loaded, module)
    assert make_trainer().validate(loaded, data, verbose=False) == results


# What is refused, before a sample is read


class Unreadable(Dataset):
    def __init__(self, length=3):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        pytest.fail("a sample was read")


def unreadable(length=3, **options):
    return DataLoader(Unreadable(length), batch_size=2, **options)


@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero")
@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"svhn": unreadable()}, "'svhn' must be named 'id/<name>'"),
        ([unreadable()], "must be a dict such as .*, not a list"),
        (unreadable(), "must be a dict such as .*, not a DataLoader"),
        ({}, "not an empty dict"),
        ({"id/a": unreadable(), "id/b": unreadable(drop_last=True)}, "'id/b' has drop_last=True"),
        ({"id/a": unreadable(1, drop_last=True)}, "'id/a' has drop_last=True"),
        ({"id/a": unreadable(), "id/b": unreadable(0)}, "'id/b' has an empty data set"),
        ({"id/a": unreadable(0)}, "'id/a' has an empty data set"),
    ],
)
def test_loaders_are_checked_before_a_sample_is_read(wrong, message, stage, model, vectors, make_trainer):
    with pytest.raises(ValueError, match=message):
        getattr(make_trainer(), stage)(MergeModule(model, vectors), wrong, verbose=False)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_loader_without_a_head(stage, model, vectors, make_trainer):
    module = MergeModule(model, vectors, heads={"mnist": nn.Linear(4, 2)})
    with pytest.raises(UnknownNameError, match="head for loader 'ood/mnits'.*Did you mean 'mnist'"):
        getattr(make_trainer(), stage)(module, {"ood/mnits": unreadable()})


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_ckpt_path_is_refused(stage, model, vectors, make_trainer, tmp_path):
    module = MergeModule(model, vectors)
    trainer = make_trainer()
    trainer.validate(module, {"id/a": loader(4, 0)}, verbose=False)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match=r"ckpt_path='.*m\.ckpt' cannot be used with a MergeModule"):
        getattr(make_trainer(), stage)(module, {"id/a": unreadable()}, ckpt_path=tmp_path / "m.ckpt")


def test_model_of_another_architecture(vectors):
    with pytest.raises(ValueError, match=r"Sequential has no tensor 2\.weight"):
        MergeModule(nn.Sequential(nn.Linear(6, 8)), vectors)
    with pytest.raises(ValueError, match=r"'2\.weight' has shape \(5, 8\), the base \(4, 8\)"):
        MergeModule(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), vectors)


def test_model_with_weights_that_would_stay_random(make_vit, vit_vectors):
    with pytest.raises(ValueError, match=r"would stay random: head\.weight, head\.bias\. .*num_classes=0"):
        MergeModule(make_vit(num_classes=3), vit_vectors)


# One trainer, several modules


def test_a_trainers_callback_takes_the_place_of_the_default_one(model, vectors, make_trainer):
    other = RECIPE.replace(scale=-1.0, ratio=0.0)
    trainer = make_trainer(callbacks=[PruneAndMerge(recipe=other)])
    module = MergeModule(model, vectors, RECIPE)
    trainer.validate(module, {"id/a": loader(4, 0)}, verbose=False)
    assert [type(callback) for callback in trainer.callbacks if isinstance(callback, PruneAndMerge)] == [PruneAndMerge]
    assert same_weights(module.model, installed(model, vectors, other))


def test_one_trainer_serves_two_modules_and_then_a_foreign_one(model, vectors, fine_tuned, make_trainer, loaders):
    from lightning.pytorch import LightningModule

    class Foreign(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 4)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("x", self.net(batch[0]).mean(), add_dataloader_idx=False)

    trainer = make_trainer()
    first = MergeModule(copy.deepcopy(model), vectors, RECIPE)
    second = MergeModule(copy.deepcopy(model), vectors.select(["b"]), RECIPE.replace(scale=1.0))
    foreign = Foreign()
    before = copy.deepcopy(foreign)
    one = {"ood/d": loaders["ood/d"]}
    figures = [trainer.validate(module, data, verbose=False) for module, data in ((first, loaders), (second, one))]
    trainer.validate(foreign, DataLoader(draw(4, 0)), verbose=False)
    assert same_weights(foreign, before)
    assert [len(results) for results in figures] == [3, 1]
    for module, results in ((first, figures[0]), (second, figures[1])):
        oracle = installed(model, module.vectors, module.recipe)
        assert same_weights(module.model, oracle)
        assert results[-1]["ood/d"] == pytest.approx(accuracy(oracle, loaders["ood/d"].dataset))


def test_validating_twice_counts_no_sample_twice(model, vectors, loaders, make_trainer):
    module, trainer = MergeModule(model, vectors, RECIPE), make_trainer()
    assert trainer.validate(module, loaders, verbose=False) == trainer.validate(module, loaders, verbose=False)


def test_a_run_after_a_failed_one(model, vectors, loaders, make_trainer):
    module, trainer = MergeModule(model, vectors, RECIPE), make_trainer()
    broken = DataLoader(TensorDataset(torch.zeros(2, 99), torch.zeros(2).long()))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trainer.validate(module, {"id/a": loaders["id/a"], "ood/d": broken}, verbose=False)
    figures = trainer.validate(module, loaders, verbose=False)
    assert figures == make_trainer().validate(MergeModule(model, vectors, RECIPE), loaders, verbose=False)


# What a module holds


def test_state_dict_holds_the_merged_model_alone(model, fine_tuned):
    state = model.state_dict()
    vectors = TaskVectors.open(model, {str(seed): fine_tuned(state, seed) for seed in range(20)})
    module = MergeModule(model, vectors).merge_()
    own = module.state_dict()
    assert own.keys() == {f"model.{name}" for name in state}
    assert sum(tensor.numel() for tensor in own.values()) == sum(tensor.numel() for tensor in state.values())
    assert not list(module.buffers())


@pytest.mark.parametrize("recipe", [None, MergeRecipe("ties", elements={"ratio": 0.5}, granularity="tensor")])
def test_hparams_are_plain_json(recipe, model, vectors):
    hparams = MergeModule(model, vectors, recipe).hparams
    plain = json.loads(json.dumps(dict(hparams)))
    assert plain == dict(hparams)
    assert MergeRecipe.from_dict(plain["recipe"]) == (recipe or MergeRecipe())
    assert plain["tasks"] == ["a", "b"]


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_work_also_after_a_validation(copy_of, model, vectors, loaders, make_trainer):
    module = MergeModule(model, vectors, RECIPE, heads={"a": nn.Identity(), "b.c": nn.Identity(), "d": nn.Identity()})
    results = make_trainer().validate(module, loaders, verbose=False)
    twin = copy_of(module)
    nn.init.zeros_(module.model[0].weight)
    assert make_trainer().validate(twin, loaders, verbose=False) == results


def test_save_merged_writes_the_model_without_heads(model, vectors, tmp_path):
    module = MergeModule(model, vectors, RECIPE, heads={"a": nn.Linear(4, 2)})
    written = open_checkpoint(module.save_merged(tmp_path / "m.safetensors"))
    oracle = installed(model, vectors, RECIPE).state_dict()
    assert set(written.names) == set(oracle)
    assert all(torch.equal(written.read(name), tensor) for name, tensor in oracle.items())
    assert MergeRecipe.from_json(written.metadata["lwptv_recipe"]) == RECIPE
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        module.save_merged(tmp_path / "m.ckpt")


@pytest.mark.parametrize("recipe", ["ties", {"rule": "ties", "scale": 0.5}, {"rule": {"name": "ties", "density": 0.5}}])
def test_a_name_or_fields_become_a_recipe(recipe, model, vectors):
    expected = MergeRecipe(recipe) if isinstance(recipe, str) else MergeRecipe.from_dict(recipe)
    module = MergeModule(model, vectors, recipe).merge_()
    assert module.recipe == module.installed == expected
    assert same_weights(module.model, installed(model, vectors, expected))


def test_options_of_merging_go_through(model, vectors):
    mask = LayerMask(vectors.tasks, trace_layers(model).names, torch.tensor([[True, False], [False, False]]))
    statistics = {task: {name: torch.rand_like(vectors.base(name)) for name in vectors.names} for task in "ab"}
    expected = merge(vectors, MergeRecipe("fisher"), trace_layers(model), mask=mask, statistics=statistics)
    module = MergeModule(model, vectors, "fisher", mask=mask, statistics=statistics)
    assert module.statistics is statistics
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.merge_().model.state_dict().items())
    twin = MergeModule(model, vectors, "fisher").merge_(mask=mask, statistics=statistics)
    assert same_weights(twin.model, module.model)


def test_dtype_and_task_among_the_options_stand_in_every_recipe(model, vectors, tmp_path):
    expected = MergeRecipe("emr", dtype="float64", task="a")
    given = MergeModule(model, vectors, "emr", dtype=torch.float64, task="a").merge_()
    asked = MergeModule(copy.deepcopy(model), vectors, "emr").merge_(dtype="float64", task="a")
    assert given.recipe == given.installed == asked.installed == expected
    assert given.hparams["recipe"] == expected.to_dict()
    for module in (given, asked):
        assert same_weights(module.model, installed(model, vectors, expected))
        written = open_checkpoint(module.save_merged(tmp_path / "merged.safetensors"))
        assert MergeRecipe.from_json(written.metadata["lwptv_recipe"]) == expected


def test_what_was_collected_can_be_given_later_and_a_device_comes_first(model, vectors):
    module = MergeModule(model, vectors, "fisher")
    module.statistics = {task: {name: torch.ones_like(vectors.base(name)) for name in vectors.names} for task in "ab"}
    assert same_weights(module.merge_("cpu").model, installed(model, vectors, MergeRecipe("simple_average")))


def test_what_is_no_option_is_refused_at_once(model, vectors):
    with pytest.raises(TypeError, match="MergeModule has no argument 'statistic', .*Did you mean 'statistics'"):
        MergeModule(model, vectors, statistic={})
    with pytest.raises(TypeError, match="MergeModule has no argument 'head', .*Did you mean 'heads'"):
        MergeModule(model, vectors, head={})


def test_plan_is_what_was_pruned(model, vectors):
    module = MergeModule(model, vectors, RECIPE).merge_()
    assert (~module.plan.mask.kept).sum(1).tolist() == [1, 1]
    assert module.merge_(recipe=RECIPE.replace(ratio=0.0)).plan is None


def test_what_is_saved_is_what_was_validated(model, vectors, loaders, make_trainer, tmp_path):
    other = MergeRecipe("ties", scale=0.7)
    module = MergeModule(model, vectors, RECIPE)
    make_trainer(callbacks=[PruneAndMerge(recipe=other)]).validate(module, loaders, verbose=False)
    written = open_checkpoint(module.save_merged(tmp_path / "m.safetensors"))
    expected = merge(vectors, other)
    assert all(torch.equal(written.read(name), tensor) for name, tensor in expected.items())
    assert MergeRecipe.from_json(written.metadata["lwptv_recipe"]) == other
    with torch.no_grad():
        model[0].bias.add_(1.0)  # as a callback may that measures something anew
    written = open_checkpoint(module.save_merged(tmp_path / "m.safetensors"))
    assert torch.equal(written.read("0.bias"), expected["0.bias"] + 1)


def test_a_file_has_the_dtypes_of_the_base_whatever_the_trainers_precision(
    model, vectors, loaders, make_trainer, tmp_path
):
    module = MergeModule(model, vectors, RECIPE)
    make_trainer(precision="bf16-true").validate(
        module,
        {name: DataLoader(TensorDataset(*loader.dataset.tensors), batch_size=4) for name, loader in loaders.items()},
        verbose=False,
    )
    assert model[0].weight.dtype == torch.bfloat16
    written = open_checkpoint(module.save_merged(tmp_path / "m.safetensors"))
    assert torch.equal(written.read("0.weight"), model[0].weight.float())


# What a checkpoint of the trainer's gives back


class Normed(nn.Module):
    """A model whose buffers matter."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, inputs):
        return self.layers(inputs)


@pytest.fixture
def normed(fine_tuned):
    """``normed(recipe)``: a module with heads, and the function that makes its like."""
    torch.manual_seed(0)
    base = Normed()
    base.layers[1].running_mean.normal_()
    base.layers[1].running_var.uniform_(0.5, 2.0)
    tasks = {task: fine_tuned(base.state_dict(), seed, 0.1) for seed, task in enumerate("ab")}
    heads = {name: nn.Linear(4, 4) for name in ("a", "b.c", "d")}

    def fresh_heads():
        return {name: nn.Linear(4, 4) for name in heads}

    return MergeModule(base, TaskVectors.open(copy.deepcopy(base), tasks), RECIPE, heads=heads), fresh_heads


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("build", [Normed, lambda: lambda mesh: Normed()], ids=["module", "function"])
def test_a_checkpoint_gives_the_same_bits_and_figures(build, stage, normed, loaders, make_trainer, tmp_path):
    module, fresh_heads = normed
    trainer = make_trainer()
    expected = getattr(trainer, stage)(module, loaders)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    loaded = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", model=build(), heads=fresh_heads())
    assert loaded.state_dict().keys() == module.state_dict().keys()
    assert same_weights(loaded, module)
    results = getattr(make_trainer(), stage)(loaded, loaders)
    assert same_weights(loaded, module)
    if stage != "predict":
        assert results == expected
    else:
        assert all(
            torch.equal(torch.cat(ours), torch.cat(theirs)) for ours, theirs in zip(results, expected, strict=True)
        )
    assert loaded.hparams == module.hparams
    assert loaded.installed == loaded.recipe == RECIPE
    assert loaded.tasks == ("a", "b")


def test_a_checkpoint_holds_plain_values_and_its_model_is_saved_as_the_merged_one(normed, make_trainer, tmp_path):
    module, fresh_heads = normed
    trainer = make_trainer(callbacks=[PruneAndMerge(recipe=RECIPE.replace(scale=0.25))])
    trainer.test(module, {"id/a": loader(4, 0)}, verbose=False)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    stored = torch.load(tmp_path / "m.ckpt", weights_only=True)
    assert json.loads(json.dumps(stored["hyper_parameters"])) == stored["hyper_parameters"]
    loaded = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", model=Normed(), heads=fresh_heads())
    assert loaded.recipe == RECIPE.replace(scale=0.25)  # not the module's own: the one whose weights these are
    module.recipe = loaded.recipe
    ours, theirs = (
        open_checkpoint(own.save_merged(tmp_path / f"{own is module}.safetensors")) for own in (loaded, module)
    )
    assert ours.metadata == theirs.metadata
    assert ours.names == theirs.names
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in ours.names)
    make_trainer().validate(loaded, {"id/a": loader(4, 0)}, verbose=False)  # a loaded module can be saved again
    loaded.trainer.save_checkpoint(tmp_path / "again.ckpt")
    again = MergeModule.load_from_checkpoint(tmp_path / "again.ckpt", model=Normed(), heads=fresh_heads())
    assert same_weights(again, loaded)


def test_what_a_loaded_module_cannot_do_is_said(normed, make_trainer, tmp_path):
    module, fresh_heads = normed
    trainer = make_trainer()
    trainer.validate(module, {"id/a": loader(4, 0)}, verbose=False)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match=r"checkpoint has a head for 'a': give heads=\{'a': module"):
        MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", model=Normed())
    loaded = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", model=Normed(), heads=fresh_heads())
    for other in (RECIPE.replace(scale=1.0), RECIPE.replace(ratio=0.0)):
        with pytest.raises(ValueError, match=r"no task vectors; give vectors=\.\.\. to merge"):
            loaded.merge_(recipe=other)
    assert same_weights(loaded, module)
    assert same_weights(
        loaded.merge_(recipe=RECIPE.replace(scale=1.0), vectors=module.vectors),
        module.merge_(recipe=RECIPE.replace(scale=1.0)),
    )
    with pytest.raises(ValueError, match="no task vectors"):
        make_trainer().validate(MergeModule(Normed()), {"id/a": loader(4, 0)}, verbose=False)


def test_task_vectors_given_to_a_loaded_module_are_merged_anew(normed, loaders, make_trainer, tmp_path):
    module, fresh_heads = normed
    trainer = make_trainer()
    expected = trainer.validate(module, loaders, verbose=False)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    loaded = MergeModule.load_from_checkpoint(
        tmp_path / "m.ckpt", model=Normed(), vectors=module.vectors, heads=fresh_heads()
    )
    nn.init.zeros_(loaded.model.layers[0].weight)
    assert make_trainer().validate(loaded, loaders, verbose=False) == expected


# A model that is made under the trainer's strategy


def test_a_function_makes_the_model_when_the_trainer_is_ready(model, vectors, loaders, make_trainer):
    made_for = []

    def build(mesh):
        made_for.append(mesh)
        with torch.device("meta"):
            return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

    module = MergeModule(build, vectors, RECIPE)
    assert all(tensor.is_meta for tensor in module.model.state_dict().values())
    figures = make_trainer().validate(module, loaders, verbose=False)
    assert figures == make_trainer().validate(module, loaders, verbose=False)
    assert made_for == [None, None]  # for the shapes, and for good
    assert same_weights(module.model, installed(model, vectors, RECIPE))


def test_a_function_makes_the_model_without_a_trainer_too(model, vectors):
    module = MergeModule(lambda mesh: copy.deepcopy(model), vectors, RECIPE).merge_()
    assert same_weights(module.model, installed(model, vectors, RECIPE))


def test_what_a_function_makes_is_checked_at_once(vectors):
    with pytest.raises(ValueError, match="Linear has no tensor 0.weight"):
        MergeModule(lambda mesh: nn.Linear(6, 8), vectors)

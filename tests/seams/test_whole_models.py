"""From a base and experts that plain Lightning trained, with classifiers of their own, to figures in plain timm."""

import math

import pytest
import torch
from _helpers.experts import CLASSES, HEADS, NETWORKS, Tuning, train_experts
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lwptv_lightning import AdaMergingModule, MergeModule, MergeRecipe, TaskVectors
from lwptv_lightning.callbacks import CollectDataStatistics, OnlineMerge, RecalibrateBatchNorm, TaskVectorCheckpoint
from lwptv_lightning.inspection import check
from lwptv_lightning.merging import read_data_statistics
from lwptv_lightning.search import sweep

RECIPE = MergeRecipe("task_arithmetic", scale=0.5)
SAMPLES = 12
"""Of each task, for statistics of data."""


@pytest.fixture(scope="module", params=NETWORKS)
def experts(request, tmp_path_factory):
    return train_experts(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def build(experts):
    """``build(recipe)``: a module of the experts, with the tasks' heads for the OOD sets too."""

    def make(recipe=RECIPE, **options):
        model = experts.network()
        vectors = TaskVectors.open(experts.base, experts.tasks, model=model)
        return MergeModule(model, vectors, recipe, heads=HEADS, **options)

    return make


@pytest.fixture
def validate(experts, make_trainer):
    def run(module, *callbacks, loaders=None):
        trainer = make_trainer(callbacks=[*callbacks])
        entries = trainer.validate(module, experts.loaders() if loaders is None else loaders, verbose=False)
        return {name: figure for entry in entries for name, figure in entry.items()}

    return run


@pytest.fixture
def collect(experts, build, validate, tmp_path):
    """``collect(kind)``: statistics of each task's own model on its own data, read from a file."""

    def run(kind):
        loaders = {name: loader for name, loader in experts.loaders().items() if name.startswith("id/")}
        file = tmp_path / f"{kind}.safetensors"
        found = validate(build(), CollectDataStatistics(kind, samples=SAMPLES, file=file), loaders=loaders)
        for task in CLASSES:  # the figures are the experts' own
            assert found[f"id/{task}"] == accuracy(experts.expert(task), experts.sets[f"id/{task}"])
        return read_data_statistics(file)

    return run


def is_of_class(kind):
    return "fc." if kind == "resnet" else "head.fc."


def accuracy(network, data):
    images, labels = data.tensors
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).float().mean())


def in_plain_timm(experts, path):
    """Return the figures of a merged file and of the heads beside it, without this package."""
    merged, heads = load_file(path), load_file(path.with_suffix(".heads.safetensors"))
    found = {}
    for loader, data in experts.sets.items():
        task = loader.partition("/")[2].removesuffix("_far")
        own = {name.removeprefix(f"{task}/"): value for name, value in heads.items() if name.startswith(f"{task}/")}
        network = experts.network(CLASSES[task])
        backbone = {name: value for name, value in merged.items() if not name.startswith(is_of_class(experts.kind))}
        network.load_state_dict(backbone | own)
        found[loader] = accuracy(network, data)
    return found


def averaged(figures):
    return {
        f"{domain}/avg": sum(own := [value for name, value in figures.items() if name.startswith(domain)]) / len(own)
        for domain in ("id", "ood")
    }


def learnt(experts, build, make_trainer):
    learning = AdaMergingModule(build(), lr=0.02)
    loaders = {name: loader for name, loader in experts.loaders().items() if name.startswith("id/")}
    make_trainer(max_steps=3, max_epochs=-1).fit(learning, loaders)
    assert not torch.allclose(learning.coefficients, torch.full_like(learning.coefficients, 0.3))
    return learning.recipe()


@pytest.mark.parametrize("rule", ["task_arithmetic", "fisher", "regmean", "adamerging"])
def test_figures_are_those_of_the_saved_model_and_heads_in_plain_timm(
    rule, experts, build, validate, collect, make_trainer, tmp_path
):
    if rule == "adamerging":
        module = build(learnt(experts, build, make_trainer))
    elif rule == "task_arithmetic":
        module = build()
    else:
        module = build(rule, statistics=collect("gram" if rule == "regmean" else rule))
    figures = validate(module)
    path = module.save_merged(tmp_path / "merged.safetensors", heads=True)
    found = in_plain_timm(experts, path)
    assert figures == pytest.approx(found | averaged(found), abs=1e-6)
    assert min(figures.values()) < max(figures.values()) <= 1
    if rule == "task_arithmetic":
        module.trainer.save_checkpoint(tmp_path / "module.ckpt")
        loaded = MergeModule.load_from_checkpoint(tmp_path / "module.ckpt", model=experts.network())
        assert validate(loaded) == figures


def test_the_experts_fit_their_base(experts):
    found = check(experts.base, experts.tasks, model=experts.network())
    assert [task.task for task in found if task.passed and task.matched] == list(CLASSES)


def test_a_sweep_finds_what_validation_does(experts, build, validate, make_trainer):
    recipes = {"half": RECIPE, "ties": MergeRecipe("ties", scale=0.5, ratio=0.25)}
    swept = sweep(make_trainer(), build(), recipes, experts.loaders())
    for name, recipe in recipes.items():
        assert swept.figures(name) == pytest.approx(validate(build(recipe)))
    assert math.isfinite(swept.difference("half", "ties", "ood").value)


def test_metrics_of_the_heads(experts, build, validate):
    module = build(metric=lambda head: MulticlassF1Score(head.out_features))
    figures = validate(module)
    for loader, data in experts.sets.items():
        task = loader.partition("/")[2].removesuffix("_far")
        images, labels = data.tensors
        with torch.no_grad():
            expected = MulticlassF1Score(CLASSES[task])(module(images, task), labels)
        assert figures[loader] == pytest.approx(float(expected))
    named = {task: MulticlassF1Score(classes) for task, classes in CLASSES.items()}
    named |= {name: named[task] for name, task in HEADS.items()}
    assert validate(build(metric=named)) == pytest.approx(figures)


def test_measured_statistics_of_batch_normalisation_are_saved(experts, build, validate, tmp_path):
    if experts.kind != "resnet":
        pytest.skip("it has none")
    module = build()
    plain = validate(build())
    figures = validate(module, RecalibrateBatchNorm(DataLoader(experts.sets["id/ten"], 30)))
    assert figures != plain
    found = in_plain_timm(experts, module.save_merged(tmp_path / "merged.safetensors", heads=True))
    assert figures == pytest.approx(found | averaged(found), abs=1e-6)


class Validated(Tuning):
    def validation_step(self, batch, batch_idx):
        pass


def test_a_run_that_goes_on_is_merged_with_others_and_stored(experts, validate, make_trainer, tmp_path):
    """Two runs from one backbone, with a head each: each stores its task vector, one watches the merge with another."""
    folders = {}
    model = experts.network()
    for task in ("two", "ten"):
        folders[task] = tmp_path / task
        others = TaskVectors.open(experts.base, {"five": experts.tasks["five"]}, model=model)
        path = is_of_class(experts.kind)[:-1]
        heads = {task: nn.Linear(model.num_features, CLASSES[task])}
        watched = MergeModule(experts.network(), others, RECIPE, heads=heads)
        loaders = {name: experts.loaders()[name] for name in ("id/five", f"id/{task}")}
        online = OnlineMerge(watched, loaders, task=task, backbone="model", head=f"model.{path}")
        kept = TaskVectorCheckpoint(folders[task], task, backbone="model")
        trainer = make_trainer(max_steps=2, callbacks=[online, kept])
        run = Validated(started(experts, task).train(), 1e-3)
        data = DataLoader(experts.sets[f"id/{task}"], 30)
        trainer.fit(run, data, data)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        assert {"merged/id/five", f"merged/id/{task}", "merged/id/avg"} <= logged.keys()
    stored = {task: folder / "task_vector.safetensors" for task, folder in folders.items()}
    vectors = TaskVectors.open(folders["two"] / "base.safetensors", stored, model=experts.network(2))
    module = MergeModule(experts.network(2), vectors.select(["ten"]), {"rule": "task_arithmetic", "scale": 1.0})
    figures = validate(module, loaders={"id/ten": experts.loaders()["id/ten"]})
    assert figures["id/ten"] == pytest.approx(accuracy(run.model.eval(), experts.sets["id/ten"]))  # head and all
    both = validate(
        MergeModule(experts.network(2), vectors, RECIPE),
        loaders={name: experts.loaders()[name] for name in ("id/two", "id/ten")},
    )
    assert {"id/two", "id/ten", "id/avg"} == both.keys()


def started(experts, task):
    """Return what a run starts from: the base's backbone, and a new head."""
    network = experts.network(CLASSES[task])
    base = experts.expert("base").state_dict()
    backbone = {name: value for name, value in base.items() if not name.startswith(is_of_class(experts.kind))}
    network.load_state_dict(backbone, strict=False)
    return network


def test_one_metric_of_one_number_of_classes_is_refused(build, validate):
    with pytest.raises(ValueError, match="loader 'id/five': its head tells 5 classes apart, and MulticlassAccuracy is"):
        validate(build(metric=MulticlassAccuracy(10)))

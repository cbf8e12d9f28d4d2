"""Which submodule is meant, where several fit; and modules that are compiled, as a whole or in part."""

import copy

import pytest
import torch
from _helpers.models import MODELS, make_model, states_of, vectors_of_model
from _helpers.states import assert_close, noise
from lightning.pytorch import LightningModule
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import (
    AdaMergingModule,
    CheckpointError,
    MergeModule,
    MergeRecipe,
    TaskVectors,
    merge,
    merge_transform,
    open_checkpoint,
    trace_layers,
)
from lwptv_lightning.callbacks import (
    CollectDataStatistics,
    OnlineMerge,
    PruneAndMerge,
    RecalibrateBatchNorm,
    TaskVectorCheckpoint,
)
from lwptv_lightning.merging import find_backbone, install_, snapshot
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import sweep

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:Found \\d+ module.s. in eval mode at the start of training",
)
RECIPE = MergeRecipe("ties", ratio=0.5)


def compiled(module):
    """Compile without a compiler, which the names and wrappers do not depend on."""
    return torch.compile(module, backend="eager")


def images(length=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = (
        torch.randn(length, 3, 8, 8, generator=generator),
        torch.randint(4, (length,), generator=generator),
    )
    return DataLoader(TensorDataset(inputs, targets), batch_size=3)


def net(width=8, bias=True):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4, bias=bias))


def vectors_of(model):
    state = copy.deepcopy(model.state_dict())
    return TaskVectors.open(state, {"a": noise(state, 1, 0.3), "b": noise(state, 2, 0.3)})


class Run(LightningModule):
    """Trains the submodules that it is given."""

    def __init__(self, **submodules):
        super().__init__()
        for name, module in submodules.items():
            self.add_module(name, module)
        self.seen = []

    def forward(self, inputs):
        return next(self.children())(inputs)

    def step(self, batch, batch_idx=0):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    training_step = step

    def validation_step(self, batch, batch_idx):
        self.seen.append(copy.deepcopy(self.state_dict()))
        self.step(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def rows(length=6):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        TensorDataset(torch.randn(length, 6, generator=generator), torch.arange(length) % 4), batch_size=3
    )


def place_of(root, model):
    return find_backbone(root, {name: value.shape for name, value in model.state_dict().items()})


SEVERAL = {
    "teacher and student": ({"teacher": net(), "student": net()}, "'teacher', 'student'"),
    "the student is short of a tensor": (
        {"teacher": net(), "student": net(bias=False)},
        r"'teacher', 'student' \(all but 2.bias\)|'teacher'",
    ),
    "the first is short of a tensor": (
        {"student": net(bias=False), "teacher": net()},
        "'teacher'.*'student'",
    ),
    "one of another width at the end": (
        {"student": nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), "teacher": net()},
        "'teacher'",
    ),
    "averaged": ({"model": net(), "ema": nn.ModuleDict({"module": net()})}, r"'model', 'ema\.module'"),
    "compiled": ({"teacher": net(), "student": compiled(net())}, "'teacher', 'student'"),
    "three": ({name: net() for name in "abc"}, "'a', 'b', 'c'"),
}


@pytest.mark.parametrize("case", [case for case in SEVERAL if "another width" not in case])
def test_several_that_fit_are_listed(case, make_trainer):
    submodules, listed = SEVERAL[case]
    module, vectors = Run(**copy.deepcopy(submodules)), vectors_of(net())
    message = rf"several submodules of Run have the merged tensors: .*({listed}).*backbone='\.\.\.'"
    before = copy.deepcopy(module.state_dict())
    for callback in (PruneAndMerge(vectors), PruneAndMerge(vectors, task="x", stages=["fit"])):
        with pytest.raises(ValueError, match=message):
            make_trainer(callbacks=[callback], max_epochs=1).fit(module, rows(), rows())
    online = OnlineMerge(MergeModule(net(), vectors), {"id/x": rows()}, task="x")
    with pytest.raises(ValueError, match=message):
        make_trainer(callbacks=[online], max_epochs=1).fit(module, rows())
    with pytest.raises(ValueError, match=message):
        make_trainer(callbacks=[PruneAndMerge(vectors)]).validate(module, rows())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("case", SEVERAL)
def test_the_one_that_is_named_is_merged(case, make_trainer):
    submodules, _ = SEVERAL[case]
    module, vectors = Run(**copy.deepcopy(submodules)), vectors_of(net())
    fitting = next(path for path in ("teacher", "ema.module", "c") if path.partition(".")[0] in submodules)
    before = copy.deepcopy(module.state_dict())
    make_trainer(callbacks=[PruneAndMerge(vectors, RECIPE, backbone=fitting)]).validate(module, rows(), verbose=False)
    merged = merge(vectors, RECIPE, trace_layers(net()))
    changed = {name for name, value in module.seen[0].items() if not torch.equal(value, before[name])}
    assert changed <= {f"{fitting}.{name}" for name in merged}
    assert all(torch.equal(module.seen[0][f"{fitting}.{name}"], value) for name, value in merged.items())


def test_one_module_under_two_names_is_one():
    shared = net()
    assert place_of(Run(model=shared, encoder=shared), shared) == "model"
    assert place_of(Run(wrapped=compiled(shared)), shared) == "wrapped"
    assert place_of(shared, shared) == ""


def test_a_wrapper_with_the_same_tensors_is_one():
    class Wrapper(nn.Module):
        """Holds the tensors of another one as its own, too."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    layer = nn.Linear(2, 3)
    assert place_of(Wrapper(layer), layer) == ""
    other = Wrapper(layer)
    other.weight = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="'', 'inner'"):
        place_of(other, layer)


def test_parts_of_a_backbone_that_are_built_as_it_is_do_not_count():
    class Recursive(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.inner = Recursive(depth - 1) if depth else None

    for depth in (1, 2, 3):
        assert place_of(Run(model=Recursive(depth)), Recursive(depth)) == "model"


def test_none_that_fits_is_told_with_the_nearest(make_trainer):
    module = Run(student=net(bias=False), other=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no submodule of Run has .*The nearest is 'student' \(all but 2\.bias\)"):
        make_trainer(callbacks=[PruneAndMerge(vectors_of(net()))]).validate(module, rows())
    with pytest.raises(UnknownNameError, match="unknown backbone 'studemt'. Did you mean 'student'"):
        make_trainer(callbacks=[PruneAndMerge(vectors_of(net()), backbone="studemt")]).validate(module, rows())
    with pytest.raises(ValueError, match=r"Sequential has no tensor 2\.bias"):
        make_trainer(callbacks=[PruneAndMerge(vectors_of(net()), backbone="student")]).validate(module, rows())


def test_a_merge_at_the_end_of_a_fit_is_checked_before_it(make_trainer):
    class Untrained(Run):
        def training_step(self, batch, batch_idx):
            pytest.fail("training began")

    vectors = vectors_of(net())
    for module, callback, message in (
        (Untrained(model=net(7)), PruneAndMerge(vectors, task="x", stages=["fit"]), "no submodule of Untrained"),
        (Untrained(model=net()), PruneAndMerge(vectors, task="a", stages=["fit"]), "task 'a' is there already"),
        (Untrained(model=net(7)), PruneAndMerge(vectors), "no submodule of Untrained"),
    ):
        trainer = make_trainer(callbacks=[callback], max_epochs=1, num_sanity_val_steps=0)
        with pytest.raises(ValueError, match=message):
            trainer.fit(module, rows(), rows())


# Checkpoints of several


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("as_base", [False, True])
def test_a_checkpoint_of_teacher_and_student_is_opened_for_one_of_them(short, as_base):
    whole = {f"teacher.{name}": value for name, value in net().state_dict().items()}
    whole |= {f"student.{name}": value for name, value in net(bias=not short).state_dict().items()}
    single = noise(net().state_dict(), 1)
    sources = (whole, {"a": single}) if as_base else (single, {"a": whole})
    with pytest.raises(CheckpointError, match=r"several prefixes, 'student\.', 'teacher\.'; name one with prefix="):
        TaskVectors.open(*sources, model=net())
    vectors = TaskVectors.open(*sources, prefix="teacher.", model=net())
    found = vectors.base("0.weight") if as_base else vectors.expert("a", "0.weight")
    assert torch.equal(found, whole["teacher.0.weight"])


def test_a_single_model_does_not_fit_one_of_two_places():
    both = nn.ModuleDict({"teacher": net(), "student": net()})
    state = net().state_dict()
    with pytest.raises(CheckpointError, match=r"several places of the model, 'student\.', 'teacher\.'"):
        TaskVectors.open(state, {"a": noise(state, 1)}, model=both)


def test_another_part_of_the_same_names_and_other_shapes_is_no_rival():
    image, text = net(), nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    for names in (("a", "b"), ("b", "a")):
        whole = {
            f"{place}.{name}": v
            for place, part in zip(names, (image, text), strict=True)
            for name, v in part.state_dict().items()
        }
        state = noise(image.state_dict(), 1)
        vectors = TaskVectors.open(state, {"x": whole})
        assert torch.equal(vectors.expert("x", "0.weight"), image.state_dict()["0.weight"])
        root = nn.ModuleDict(dict(zip(names, (image, text), strict=True)))
        assert place_of(root, image) == names[0]


# Compiled


class Nested(nn.Module):
    """A ResNet whose first half is a submodule of its own, to be compiled."""

    def __init__(self, compiles=False):
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.stem = compiled(stem) if compiles else stem
        self.fc = nn.Linear(6, 4)

    def forward(self, inputs):
        return self.fc(self.stem(inputs).mean((2, 3)))


def nested(compiles=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Nested(compiles).eval()


def in_place(model):
    model.compile(backend="eager")
    return model


WAYS = {
    "whole": lambda: (nested(), compiled(nested())),
    "in place": lambda: (nested(), in_place(nested())),
    "submodule": lambda: (nested(), nested(True)),
    "both": lambda: (nested(), compiled(nested(True))),
    **{
        kind: lambda kind=kind: (make_model(kind), compiled(make_model(kind)))
        for kind in MODELS
        if kind != "own classifiers"  # whose loaders need heads
    },
}


@pytest.fixture(params=WAYS)
def pair(request):
    """A model, and the same compiled."""
    return WAYS[request.param]()


def test_a_compiled_model_is_opened_under_its_names(pair):
    plain, model = pair
    state, tasks = states_of(plain)
    assert open_checkpoint(model).names == tuple(state)
    for sources in ((model, tasks), (state, {"a": model, "b": tasks["b"]}), (model.state_dict(), tasks)):
        for reference in (None, model, plain):
            if sources[1].get("a") is model:
                with pytest.warns(UserWarning, match="task 'a' equals the base"):
                    vectors = TaskVectors.open(*sources, model=reference)
            else:
                vectors = TaskVectors.open(*sources, model=reference)
            assert {*vectors.shared_names} == {*state}
    inside = {f"model.{name}": value for name, value in model.state_dict().items()}
    around = {f"_orig_mod.model.{name}": value for name, value in plain.state_dict().items()}
    for wrapped in (inside, around):
        assert open_checkpoint(wrapped, prefix="model.").names == tuple(state)
        assert (
            TaskVectors.open(wrapped, tasks, prefix="model.").shared_names
            == TaskVectors.open(state, tasks).shared_names
        )


@pytest.mark.parametrize("granularity", ["block", "module", "tensor"])
def test_a_compiled_model_has_the_layers_of_the_plain_one(granularity, pair):
    plain, model = pair
    assert trace_layers(model, granularity) == trace_layers(plain, granularity)


def test_weights_are_installed_and_taken_out(pair):
    plain, model = pair
    state = plain.state_dict()
    before = snapshot(model, state)
    assert before.keys() == state.keys()
    install_(model, {name: value + 1 for name, value in state.items()})
    assert_close(snapshot(model, state), {name: value + 1 for name, value in state.items()})


def test_a_merge_module_of_a_compiled_model(pair, make_trainer, tmp_path):
    plain, model = pair
    vectors = vectors_of_model(plain)
    modules = [MergeModule(each, vectors, RECIPE) for each in (copy.deepcopy(plain), model)]
    loaders = {"id/a": images(), "ood/far": images(seed=1)}
    figures = [make_trainer().validate(module, loaders, verbose=False) for module in modules]
    assert figures[0] == figures[1]
    states = [module.state_dict() for module in modules]
    assert tuple(states[0]) == tuple(states[1])
    assert_close(states[1], states[0], 0)
    files = [load_file(module.save_merged(tmp_path / f"{index}.safetensors")) for index, module in enumerate(modules)]
    assert_close(files[1], files[0], 0)
    modules[1].trainer.save_checkpoint(tmp_path / "m.ckpt")
    for fresh in (copy.deepcopy(plain), compiled(copy.deepcopy(plain))):
        loaded = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", model=fresh)
        assert_close(loaded.state_dict(), states[0], 0)
    modules[0].load_state_dict(states[1])
    modules[1].load_state_dict({f"model.{name}": value for name, value in model.state_dict().items()})


def test_a_compiled_model_in_the_transform(pair):
    plain, model = pair
    vectors = vectors_of_model(plain)
    graphs = [merge_transform(each, vectors, RECIPE) for each in (plain, model)]
    assert_close(graphs[1].state_dict(), graphs[0].state_dict(), 0)
    notes = [[node.meta.get("lwptv") for node in graph.graph.nodes] for graph in graphs]
    assert notes[0] == notes[1]
    assert any(notes[0])


def test_a_compiled_model_in_a_sweep(pair, make_trainer):
    plain, model = pair
    vectors = vectors_of_model(plain)
    candidates = {"merged": RECIPE, "base": {name: vectors.base(name) for name in vectors.shared_names}}
    found = [
        sweep(make_trainer(), MergeModule(each, vectors), candidates, {"id/a": images()}) for each in (plain, model)
    ]
    for name in candidates:
        assert found[0].figures(name) == found[1].figures(name)


def test_adamerging_on_a_compiled_model(pair, make_trainer):
    plain, model = pair
    vectors = vectors_of_model(plain)
    if len({*map(id, plain.parameters())}) < len([*plain.named_parameters(remove_duplicate=False)]):
        pytest.skip("tied weights")
    learnt = []
    for each in (plain, model):
        module = AdaMergingModule(MergeModule(each, vectors), lr=0.1)
        make_trainer(max_steps=2).fit(module, {"id/a": images(), "id/b": images()})
        learnt.append(module.coefficients.detach())
    torch.testing.assert_close(*learnt)


@pytest.mark.parametrize("kind", ["gram", "fisher"])
def test_data_statistics_of_a_compiled_model(kind, pair, make_trainer):
    plain, model = pair
    vectors, found = vectors_of_model(plain), []
    for each in (plain, model):
        callback = CollectDataStatistics(kind, samples=4)
        loaders = {f"id/{task}": images() for task in "ab"}
        make_trainer(callbacks=[callback]).validate(MergeModule(each, vectors), loaders, verbose=False)
        found.append(callback.statistics)
    for task in "ab":
        assert found[0][task] or kind == "gram"  # the 1x1 convolutions have no linear layer
        assert_close(found[1][task], found[0][task])


class Watched(Run):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("mean", self.model(batch[0]).mean())


@pytest.mark.parametrize("backbone", [None, "model", "model._orig_mod"])
def test_callbacks_on_a_compiled_backbone(backbone, pair, make_trainer, tmp_path):
    plain, model = pair
    if backbone == "model._orig_mod" and not hasattr(model, "_orig_mod"):
        backbone = "model"
    vectors, results = vectors_of_model(plain), []
    for index, each in enumerate((plain, model)):
        path = "model" if index == 0 and backbone is not None else backbone
        module = Watched(model=copy.deepcopy(each) if index == 0 else each)
        folder = tmp_path / str(index)
        callbacks = [
            PruneAndMerge(vectors, RECIPE, backbone=path),
            RecalibrateBatchNorm(images(seed=4)),
            OnlineMerge(MergeModule(copy.deepcopy(plain), vectors), {"id/x": images()}, task="x", backbone=path or ""),
            TaskVectorCheckpoint(folder, "x", backbone=path or "model"),
        ]
        trainer = make_trainer(max_epochs=1, callbacks=callbacks)
        trainer.fit(module, images(), images(seed=3))
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        results.append((figures, open_checkpoint(module), load_file(folder / "task_vector.safetensors")))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    assert "merged/id/x" in results[0][0]
    for left, right in ((results[0][2], results[1][2]),):
        assert_close(left, right)
    states = [{name: checkpoint.read(name) for name in checkpoint.names} for _, checkpoint, _ in results]
    assert_close(*states)

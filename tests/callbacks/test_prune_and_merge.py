import copy
import signal

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, PruneAndMerge, TaskVectors, merge, trace_layers
from lwptv_lightning.registry import UnknownNameError

RECIPE = MergeRecipe("dare", ratio=0.5)


class Foreign(LightningModule):
    """A module of someone else's, which looks at its own weights in every step."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
        self.seen = []
        self.fail_with = None

    def step(self, batch, batch_idx):
        self.seen.append(copy.deepcopy(self.net.state_dict()))
        if self.fail_with is not None:
            raise self.fail_with
        return self.net(batch[0])

    validation_step = test_step = predict_step = step

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Foreign()


@pytest.fixture
def vectors(module, fine_tuned):
    state = module.net.state_dict()
    return TaskVectors.open(state, {task: fine_tuned(state, seed, 0.5) for seed, task in enumerate("ab")})


@pytest.fixture
def merged(module, vectors):
    return merge(vectors, RECIPE, trace_layers(module.net))


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(12, 6, generator=generator), torch.randint(0, 4, (12,), generator=generator)
    return DataLoader(TensorDataset(inputs, targets), batch_size=4)


def same(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(tensor.reshape(-1).view(torch.uint8), right[name].reshape(-1).view(torch.uint8))
        for name, tensor in left.items()
    )


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_weights_are_merged_during_a_stage_and_the_own_ones_after(
    stage, inference_mode, module, vectors, merged, data, make_trainer
):
    before = copy.deepcopy(module.net.state_dict())
    parameters = list(module.parameters())
    trainer = make_trainer(callbacks=[PruneAndMerge(vectors, RECIPE)], inference_mode=inference_mode)
    getattr(trainer, stage)(module, data)
    assert len(module.seen) == len(data)
    assert all(same(state, merged) for state in module.seen)
    assert not same(before, merged)
    assert same(module.net.state_dict(), before)
    assert all(now is then for now, then in zip(module.parameters(), parameters, strict=True))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize(("error", "raised"), [(ValueError, ValueError), (KeyboardInterrupt, SystemExit)])
def test_own_weights_are_back_after_a_failure(error, raised, stage, module, vectors, merged, data, make_trainer):
    before = copy.deepcopy(module.net.state_dict())
    module.fail_with = error("stop")
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(raised):
            getattr(make_trainer(callbacks=[PruneAndMerge(vectors, RECIPE)]), stage)(module, data)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves the signal ignored
    assert same(module.seen[0], merged)
    assert same(module.net.state_dict(), before)


def test_stages_that_are_not_named_keep_the_own_weights(module, vectors, merged, data, make_trainer):
    before = copy.deepcopy(module.net.state_dict())
    trainer = make_trainer(callbacks=[PruneAndMerge(vectors, RECIPE, stages=["test"])])
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    half = len(module.seen) // 2
    assert all(same(state, before) for state in module.seen[:half])
    assert all(same(state, merged) for state in module.seen[half:])


def train(module, data, make_trainer, folder, callbacks, **options):
    checkpoint = ModelCheckpoint(folder, save_top_k=-1, every_n_epochs=1)
    torch.manual_seed(1)
    trainer = make_trainer(
        max_epochs=3, callbacks=[*callbacks, checkpoint], enable_checkpointing=True, num_sanity_val_steps=2, **options
    )
    trainer.fit(module, data, data)
    saved = [torch.load(path, weights_only=True)["state_dict"] for path in sorted(folder.glob("*.ckpt"))]
    return module.state_dict(), saved


def test_training_goes_on_as_if_nothing_had_happened(module, vectors, merged, data, make_trainer, tmp_path):
    twin = copy.deepcopy(module)
    plain, plain_saved = train(twin, data, make_trainer, tmp_path / "plain", [])
    state, saved = train(module, data, make_trainer, tmp_path / "merged", [PruneAndMerge(vectors, RECIPE)])
    assert same(state, plain)
    assert len(saved) == len(plain_saved) == 3
    assert all(same(*pair) for pair in zip(saved, plain_saved, strict=True))

    sanity, evaluated = module.seen[:2], module.seen[2:]
    assert all(same(state, twin.seen[0]) for state in sanity)
    assert len(evaluated) == 9
    assert all(same(state, merged) for state in evaluated)


def nested():
    module = LightningModule()
    module.model = nn.Module()
    module.model.encoder = nn.Linear(3, 3)
    module.model.copy = nn.Linear(3, 3)
    module.seen = []

    def predict_step(batch, batch_idx):
        encoder, other = module.model.encoder, module.model.copy
        module.seen.append((encoder.weight.detach().clone(), other.weight.detach().clone()))
        return batch

    module.predict_step = predict_step
    return module


@pytest.mark.parametrize(("backbone", "replaced"), [(None, 0), ("model.encoder", 0), ("model.copy", 1)])
def test_backbone_is_found_or_given(backbone, replaced, fine_tuned, make_trainer):
    module = nested()
    if backbone is None:
        module.model.copy = nn.LayerNorm(3)  # of another shape, so that one alone fits
    vectors = TaskVectors.open(module.model.encoder, {"a": fine_tuned(module.model.encoder.state_dict(), 1)})
    callback = PruneAndMerge(vectors, MergeRecipe(scale=1.0), backbone=backbone)
    make_trainer(callbacks=[callback]).predict(module, DataLoader(torch.zeros(1, 3)))
    tuned = vectors.expert("a", "weight")
    assert [torch.allclose(weight, tuned) for weight in module.seen[0]] == [index == replaced for index in range(2)]


def test_no_submodule_fits(vectors, make_trainer):
    with pytest.raises(
        ValueError, match=r"no submodule of LightningModule has all merged tensors, .*backbone='\.\.\.'"
    ):
        make_trainer(callbacks=[PruneAndMerge(vectors)]).predict(nested(), DataLoader(torch.zeros(1, 3)))


def test_a_foreign_module_needs_vectors(module, data, make_trainer):
    with pytest.raises(ValueError, match=r"needs vectors=\.\.\. on a Foreign; only a MergeModule has its own"):
        make_trainer(callbacks=[PruneAndMerge()]).validate(module, data)
    assert not module.seen


def test_unknown_stage_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown stage 'validation'. Did you mean 'validate'"):
        PruneAndMerge(stages=["validation"])


def test_merged_weights_of_a_merge_module_stay(module, vectors, merged, data, make_trainer):
    own = MergeModule(module.net, vectors)
    trainer = make_trainer(callbacks=[PruneAndMerge(recipe=RECIPE)])
    trainer.validate(own, {"id/a": data}, verbose=False)
    assert same(own.model.state_dict(), merged)
    assert own.plan is not None


def trained_merge(module, vectors, trained):
    own = TaskVectors.open(
        {name: vectors.base(name) for name in vectors.shared_names},
        {task: {name: vectors.expert(task, name) for name in vectors.shared_names} for task in vectors.tasks}
        | {"mine": trained},
    )
    return merge(own, RECIPE, trace_layers(module.net))


def test_after_fit_the_module_holds_the_merge_of_what_was_trained(module, vectors, data, make_trainer, tmp_path):
    twin = copy.deepcopy(module)
    _, plain_saved = train(twin, data, make_trainer, tmp_path / "plain", [])
    trained = copy.deepcopy(twin.net.state_dict())
    callback = PruneAndMerge(vectors, RECIPE, task="mine", stages=["fit"])
    _, saved = train(module, data, make_trainer, tmp_path / "merged", [callback])
    assert same(module.net.state_dict(), trained_merge(module, vectors, trained))
    assert not same(module.net.state_dict(), trained)
    # Validations and checkpoints of the run know of the trained weights only.
    assert all(same(*pair) for pair in zip(module.seen, twin.seen, strict=True))
    assert len(saved) == 3
    assert all(same(*pair) for pair in zip(saved, plain_saved, strict=True))


def test_own_weights_join_at_an_evaluation(module, vectors, data, make_trainer):
    before = copy.deepcopy(module.net.state_dict())
    module.net[0].weight.data += 0.5
    own = copy.deepcopy(module.net.state_dict())
    make_trainer(callbacks=[PruneAndMerge(vectors, RECIPE, task="mine")]).validate(module, data, verbose=False)
    assert all(same(state, trained_merge(module, vectors, own)) for state in module.seen)
    assert same(module.net.state_dict(), own)
    assert not same(before, own)


def test_a_failed_fit_merges_nothing(module, vectors, data, make_trainer):
    module.fail_with = ValueError("stop")
    callback = PruneAndMerge(vectors, RECIPE, task="mine", stages=["fit"])
    trainer = make_trainer(callbacks=[callback], max_epochs=1, num_sanity_val_steps=0)
    with pytest.raises(ValueError, match="stop"):
        trainer.fit(module, data, data)
    assert same(module.net.state_dict(), module.seen[0])


EVERY = {task: {"*": 1} for task in ("a", "b", "mine")}
WRONG = {
    "a task": (EVERY | {"min": {"*": 1}}, "unknown task in coefficients 'min'. Did you mean 'mine'"),
    "no number": ({"a": {"*": 1}, "b": {"*": 1}}, "hold none for these of the 3 tasks: mine"),
    "a layer": (EVERY | {"a": {"0": 1, "11": 1, "*": 1}}, "layer in coefficients of task 'a' '11'"),
}


@pytest.mark.parametrize(("coefficients", "message"), WRONG.values(), ids=WRONG)
def test_coefficients_that_do_not_fit_are_refused_before_the_training(
    coefficients, message, module, vectors, data, make_trainer
):
    recipe = MergeRecipe(prune_on="parts", coefficients=coefficients)
    callback = PruneAndMerge(vectors, recipe, task="mine", stages=["fit"])
    module.fail_with = AssertionError("it was trained")
    with pytest.raises(ValueError, match=message):
        make_trainer(callbacks=[callback], max_epochs=1).fit(module, data, data)


def test_the_stage_fit_needs_a_name_for_what_is_trained(vectors):
    with pytest.raises(ValueError, match="stage 'fit' merges what was trained: name its task with task='...'"):
        PruneAndMerge(vectors, stages=["fit"])


def test_a_rules_name_and_options_of_merging_do(module, vectors, data, make_trainer):
    statistics = {task: {name: torch.rand_like(vectors.base(name)) for name in vectors.names} for task in vectors.tasks}
    expected = merge(vectors, MergeRecipe("fisher"), statistics=statistics)
    trainer = make_trainer(callbacks=[PruneAndMerge(vectors, "fisher", statistics=statistics)])
    trainer.validate(module, data, verbose=False)
    assert all(same(state, expected) for state in module.seen)
    own = MergeModule(copy.deepcopy(module.net), vectors)
    callback = PruneAndMerge(recipe="fisher", statistics=statistics)
    make_trainer(callbacks=[callback]).validate(own, {"id/a": data}, verbose=False)
    assert same(own.model.state_dict(), expected)
    with pytest.raises(TypeError, match="PruneAndMerge has no argument 'stage', .*Did you mean 'stages'"):
        PruneAndMerge(vectors, stage=["test"])


def test_tensors_that_are_left_out_stay_the_modules_own(module, fine_tuned, data, make_trainer):
    state = module.net.state_dict()
    partly = TaskVectors.open(copy.deepcopy(state), {"a": fine_tuned(state, 1, 0.5)}, exclude=("3.*",))
    nn.init.ones_(module.net[3].weight)
    make_trainer(callbacks=[PruneAndMerge(partly)]).validate(module, data, verbose=False)
    assert torch.equal(module.seen[0]["3.weight"], torch.ones(4, 8))
    assert not torch.equal(module.seen[0]["0.weight"], module.net[0].weight)

"""Heads are never random, never another's and never forgotten; labels are of the classes that a head tells apart."""

import copy

import pytest
import torch
from _helpers.states import noise
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lwptv_lightning import (
    AdaMergingModule,
    EvaluationSuite,
    MergeModule,
    MergeRecipe,
    TaskVectors,
    merge,
    merge_transform,
    open_checkpoint,
)
from lwptv_lightning.callbacks import CollectDataStatistics, OnlineMerge, PruneAndMerge
from lwptv_lightning.checkpoints import Provenance
from lwptv_lightning.evaluation import timm_module
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import sweep

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
RECIPE = MergeRecipe("task_arithmetic", scale=0.5)


class Net(nn.Module):
    """A convolutional network as torchvision has them, with a classifier that may be left out."""

    def __init__(self, classes=4):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, classes) if classes else nn.Identity()

    def forward(self, images):
        return self.fc(self.bn(self.conv(images)).relu().mean((2, 3)))


class Unreadable(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        pytest.fail("a sample was read")


def unreadable():
    return DataLoader(Unreadable())


def images(classes=4, length=6, size=8, targets=None):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(length, 3, size, size, generator=generator)
    return DataLoader(
        TensorDataset(inputs, torch.arange(length) % classes if targets is None else targets), batch_size=3
    )


@pytest.fixture
def excluded():
    """``excluded(model)``: the task vectors of a model and of experts with other classifiers, which are left out."""
    base = Net().state_dict()
    tasks = {}
    for seed, classes in enumerate((3, 5), start=1):
        state = noise(base, seed, 0.1) | {
            f"fc.{name}": value for name, value in nn.Linear(6, classes).state_dict().items()
        }
        tasks["ab"[seed - 1]] = {name: value.abs() if "var" in name else value for name, value in state.items()}
    return TaskVectors.open(base, tasks, exclude=("fc.*",))


@pytest.fixture
def differing(make_vit):
    """A timm model, and task vectors of experts with classifiers of their own."""
    base, tasks = make_vit(num_classes=10), {}
    for seed, classes in enumerate((3, 5), start=1):
        expert = make_vit(num_classes=classes, seed=seed)
        own = {name: value for name, value in expert.state_dict().items() if name.startswith("head.")}
        tasks["ab"[seed - 1]] = noise(base.state_dict(), seed) | own
    return base, TaskVectors.open(base, tasks, model=base), tasks


# Never random


def test_a_classifier_that_would_stay_as_initialised_is_refused(excluded):
    for build in (lambda: Net(7), lambda: lambda mesh: Net(7)):
        with pytest.raises(
            ValueError, match=r"would stay random: fc\.weight, fc\.bias\. 'fc\.weight' has shape \(7, 6\)"
        ):
            MergeModule(build(), excluded)
    with pytest.raises(ValueError, match=r"would stay random: fc\.weight"):
        merge_transform(Net(7), excluded, RECIPE)
    module = MergeModule(Net(), excluded, RECIPE).merge_()  # of the base's shape: the base's
    assert torch.equal(module.model.fc.weight, excluded.base("fc.weight"))


def test_a_graph_has_no_classifier_of_the_model_that_is_traced(differing, make_vit):
    base, vectors, _ = differing
    for classes in (7, 3):
        with pytest.raises(ValueError, match=r"would stay random: head\.weight, head\.bias"):
            merge_transform(make_vit(num_classes=classes), vectors, RECIPE)
    graph = merge_transform(make_vit(num_classes=10, seed=5), vectors, RECIPE)
    assert torch.equal(graph.state_dict()["head.weight"], base.head.weight)
    features = merge_transform(make_vit(), vectors, RECIPE)
    assert not any("head" in name for name in features.state_dict())


def test_the_models_own_classifier_is_of_no_use_where_it_is_no_checkpoints(differing, make_vit, make_trainer, tmp_path):
    _, vectors, _ = differing
    module = MergeModule(make_vit(num_classes=7, seed=9), vectors, RECIPE)
    make_trainer().validate(module, {"id/a": images(3, size=32)}, verbose=False)
    inputs = torch.randn(2, 3, 32, 32)
    module.trainer.save_checkpoint(tmp_path / "m.ckpt")
    loaded = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", model=make_vit(num_classes=7))
    for each in (module, loaded):
        assert each(inputs, "b").shape == (2, 5)
        with pytest.raises(
            ValueError, match=r"own classifier \(head\.weight, head\.bias\) is no checkpoint's.*one of a, b"
        ):
            each(inputs)
        written = open_checkpoint(each.save_merged(tmp_path / "m.safetensors"))
        assert not any(name.startswith("head.") for name in written.names)
    own = MergeModule(make_vit(num_classes=10, seed=9), vectors, RECIPE).merge_()
    assert own(inputs).shape == (2, 10)  # the base's classifier
    written = open_checkpoint(own.save_merged(tmp_path / "own.safetensors"))
    assert "head.weight" not in written.names
    assert Provenance.of(written).left_out == ["head.weight", "head.bias"]
    kept = open_checkpoint(own.save_merged(tmp_path / "own.safetensors", keep_classifier=True))
    assert torch.equal(kept.read("head.weight"), vectors.base("head.weight"))
    assert Provenance.of(kept).left_out == []
    with pytest.raises(ValueError, match=r"keep_classifier: the model's own classifier \(head\.weight, head\.bias\)"):
        module.save_merged(tmp_path / "own.safetensors", keep_classifier=True)


def test_features_are_no_logits(vit, vit_vectors, make_trainer, tmp_path):
    module, message = MergeModule(vit, vit_vectors, RECIPE), r"returns features.*give heads="
    loaders = {"id/a": unreadable(), "id/b": unreadable()}
    for stage in ("validate", "test"):
        for callbacks in ([], [PruneAndMerge()], [CollectDataStatistics("fisher")]):
            if stage == "validate" or not isinstance((*callbacks, None)[0], CollectDataStatistics):
                with pytest.raises(ValueError, match=message):
                    getattr(make_trainer(callbacks=callbacks), stage)(module, loaders, verbose=False)
    with pytest.raises(ValueError, match=message):
        make_trainer().validate(module, datamodule=EvaluationSuite({"a": unreadable()}), verbose=False)
    with pytest.raises(ValueError, match=message):
        sweep(make_trainer(), module, {"merged": RECIPE}, loaders)
    with pytest.raises(ValueError, match=message):
        make_trainer(max_steps=1).fit(AdaMergingModule(module), loaders)
    with pytest.raises(ValueError, match=message):
        OnlineMerge(module, {"id/c": unreadable()}, task="c")
    # Features are what is asked for here, and Gram matrices need none.
    assert make_trainer().predict(module, images(size=32))[0].shape == (3, 48)
    gram = CollectDataStatistics("gram")
    make_trainer(callbacks=[gram]).validate(module, {f"id/{task}": images(size=32) for task in "ab"}, verbose=False)
    assert gram.statistics["a"]


def test_a_removed_classifier_of_another_library_is_found_too(excluded, make_trainer):
    module = MergeModule(Net(0), excluded, RECIPE)
    with pytest.raises(ValueError, match="'fc' is an Identity"):
        make_trainer().validate(module, {"id/a": unreadable()}, verbose=False)
    heads = {"a": nn.Linear(6, 3)}
    make_trainer().validate(MergeModule(Net(0), excluded, RECIPE, heads=heads), {"id/a": images(3)}, verbose=False)


def test_a_module_of_plain_values_is_refused_too(vit, vit_vectors, make_trainer, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "base.pt")
    torch.save({name: vit_vectors.expert("a", name) for name in vit_vectors.shared_names}, tmp_path / "a.pt")
    arguments = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}
    paths = str(tmp_path / "base.pt"), {"a": str(tmp_path / "a.pt")}
    module = timm_module("vit_tiny_patch16_224", *paths, model_arguments={**arguments, "num_classes": 0})
    with pytest.raises(ValueError, match="returns features"):
        make_trainer().validate(module, datamodule=EvaluationSuite({"a": unreadable()}), verbose=False)
    with pytest.raises(ValueError, match=r"would stay random: head\.weight"):
        timm_module("vit_tiny_patch16_224", *paths, model_arguments=arguments)


def test_weights_of_a_sweep_are_the_bases_where_they_name_none(excluded, make_trainer):
    loaders, base = {"id/a": images()}, {name: excluded.base(name) for name in excluded.headers}
    partly = {name: value for name, value in base.items() if name.startswith("conv.")}
    found = sweep(make_trainer(), MergeModule(Net(), excluded), {"base": base, "partly": partly}, loaders)
    oracle = Net().eval()
    oracle.load_state_dict(base)
    inputs, targets = loaders["id/a"].dataset.tensors
    expected = (oracle(inputs).argmax(1) == targets).tolist()
    assert found.correct("base")["id/a"].tolist() == found.correct("partly")["id/a"].tolist() == expected
    with pytest.raises(UnknownNameError, match=r"unknown tensor 'conv\.weigth'. Did you mean 'conv\.weight'"):
        sweep(make_trainer(), MergeModule(Net(), excluded), {"x": {"conv.weigth": base["conv.weight"]}}, loaders)


# Never another's


def test_heads_are_those_of_the_task_vectors_that_are_merged(differing, make_vit):
    base, vectors, tasks = differing
    module = MergeModule(copy.deepcopy(base), vectors, RECIPE)
    other = {**tasks, "a": tasks["a"] | {"head.bias": tasks["a"]["head.bias"] + 1}}
    others = TaskVectors.open(base, other, model=base)
    with pytest.raises(ValueError, match="the head of 'a' is made of other task vectors"):
        module.merge_(vectors=others)
    MergeModule(copy.deepcopy(base), vectors, RECIPE, heads={"a": nn.Linear(48, 3)}).merge_(vectors=others)
    module.merge_(vectors=vectors.select(["b"]))
    module.merge_(vectors=vectors.with_task("c", tasks["a"]))


def test_fisher_information_is_of_each_tasks_own_head(differing, make_trainer):
    base, vectors, _ = differing
    callback = CollectDataStatistics("fisher", samples=2)
    loaders = {"id/a": images(3, size=32), "id/b": images(5, size=32)}
    make_trainer(callbacks=[callback]).validate(MergeModule(copy.deepcopy(base), vectors), loaders, verbose=False)
    for task in "ab":
        assert callback.statistics[task]["blocks.0.mlp.fc1.weight"].any()
        assert merge(vectors, "fisher", statistics=callback.statistics).keys() == set(vectors.headers)


# Never forgotten: the head of what is trained


class Run(LightningModule):
    def __init__(self, trains_head=True):
        super().__init__()
        self.net, self.head = Net(0), nn.Linear(6, 4)
        self.head.requires_grad_(trains_head)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.net(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def online(excluded, names=("mine", "a"), loaders=("id/mine",), **options):
    heads = {name: nn.Linear(6, 4) for name in names}
    module = MergeModule(Net(0), excluded, RECIPE, heads=heads)
    return OnlineMerge(module, {name: images() for name in loaders}, task="mine", backbone="net", **options)


def test_online_merge_needs_a_head_for_each_loader_before_training(excluded):
    with pytest.raises(UnknownNameError, match="head for loader 'id/mine': 'mine'"):
        online(excluded, names=("a",))
    with pytest.raises(UnknownNameError, match="head for loader 'ood/far': 'far'"):
        online(excluded, loaders=("id/mine", "ood/far"))


def test_online_merge_does_not_forget_the_head_that_is_trained(excluded, make_trainer):
    with pytest.raises(ValueError, match="the head of 'mine' would stay as it is, while 'head', .* say head='head'"):
        make_trainer(callbacks=[online(excluded)], max_epochs=1).fit(Run(), images())
    for callback, module in (
        (online(excluded, head="head"), Run()),
        (online(excluded, head=""), Run()),
        (online(excluded), Run(trains_head=False)),
        (online(excluded, loaders=("id/a",)), Run()),
    ):
        trainer = make_trainer(callbacks=[callback], max_epochs=1)
        trainer.fit(module, images())
        assert "merged/id/avg" in trainer.callback_metrics
        follows = torch.equal(callback.module.head("mine").weight, module.head.weight)
        assert follows == (callback.head == "head")


def test_a_head_inside_of_the_backbone_is_not_forgotten_either(excluded, make_trainer):
    run = Run()
    run.net, run.head = Net(4), nn.Identity()
    with pytest.raises(ValueError, match="while 'net.fc', of the same shapes, is trained: say head='net.fc'"):
        make_trainer(callbacks=[online(excluded)], max_epochs=1).fit(run, images())
    callback = online(excluded, head="net.fc")
    make_trainer(callbacks=[callback], max_epochs=1).fit(run, images())
    assert torch.equal(callback.module.head("mine").weight, run.net.fc.weight)


# Labels


WRONG = {
    "beyond": (torch.tensor([0, 1, 2, 3, 4, 0]), "has the label 4, but the model tells 4 classes apart"),
    "negative": (torch.tensor([0, 1, -1, 3, 0, 0]), "has the label -1"),
    "one-hot": (torch.eye(4)[[0, 1, 2, 3, 0, 1]], r"has targets of shape \(3, 4\).*argmax"),
    "one-hot integers": (torch.eye(4)[[0, 1, 2, 3, 0, 1]].long(), r"has targets of shape \(3, 4\)"),
    "floats": (torch.zeros(6), "has targets of dtype torch.float32"),
    "columns": (torch.zeros(6, 1).long(), r"has targets of shape \(3, 1\)"),
}


@pytest.mark.parametrize("metric", [None, MulticlassAccuracy(4)])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_label_of_a_class_is_told_with_the_loaders_name(case, metric, excluded, make_trainer):
    targets, message = WRONG[case]
    loaders = {"id/a": images(), "ood/far off": images(targets=targets)}
    module = MergeModule(Net(), excluded, RECIPE, metric=metric)
    for stage in ("validate", "test"):
        with pytest.raises(ValueError, match=f"loader 'ood/far off' {message}"):
            getattr(make_trainer(), stage)(module, loaders, verbose=False)
    if metric is None:
        with pytest.raises(ValueError, match=f"loader 'ood/far off' {message}"):
            sweep(make_trainer(), module, {"merged": RECIPE}, loaders)
    callback = OnlineMerge(module, {"ood/far off": images(targets=targets)}, task="mine", backbone="net")
    run = Run()
    run.net = Net()
    run.head = nn.Identity()
    with pytest.raises(ValueError, match=f"loader 'ood/far off' {message}"):
        make_trainer(callbacks=[callback], max_epochs=1).fit(run, images())


def test_labels_beyond_a_head_are_told_too(differing, make_trainer):
    base, vectors, _ = differing
    module = MergeModule(copy.deepcopy(base), vectors, RECIPE)
    with pytest.raises(ValueError, match="loader 'id/a' has the label 3, but the model tells 3 classes apart"):
        make_trainer().validate(module, {"id/a": images(4, size=32)}, verbose=False)

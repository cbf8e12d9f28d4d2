"""Batches that are dicts, tuples or more go wherever tensors go, by a subclass's `unpack` and `forward`."""

from typing import NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import AdaMergingModule, CollectDataStatistics, MergeModule, TaskVectors, merge
from lwptv_lightning.callbacks import RecalibrateBatchNorm
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import sweep

SIZE = 14


class Net(nn.Module):
    """Of two inputs; a scale in a batch belongs to no sample."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 3)

    def forward(self, left, right, scale=None):
        hidden = torch.tanh(self.norm(self.left(input=left) + self.right(right)))
        return self.out(hidden) if scale is None else self.out(hidden) * scale


class AsTensor(nn.Module):
    """The same of one tensor, under the same names."""

    def __init__(self):
        super().__init__()
        inner = Net()
        self.left, self.right, self.norm, self.out = inner.left, inner.right, inner.norm, inner.out

    def forward(self, inputs):
        return Net.forward(self, inputs[:, :3], inputs[:, 3:])


class Answering(Net):
    """The same with an answer of several parts."""

    def forward(self, left, right, scale=None):
        return {"hidden": None, "logits": super().forward(left, right, scale)}


def by_keys(net, vectors):
    """Take what `OfDicts` takes, without a class of its own."""
    answering = Answering()
    answering.load_state_dict(net.state_dict())
    return MergeModule(answering, vectors, batch_keys=(("left", "right", "scale"), "label"), output_key="logits")


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class OfDicts(MergeModule):
    """Takes ``{"left", "right", "scale", "label"}``."""

    def unpack(self, batch):
        return {name: batch[name] for name in ("left", "right", "scale")}, batch["label"]

    def forward(self, inputs, head=None):
        return self.model(**inputs)


class OfPairs(MergeModule):
    """Takes ``((left, right), label)``, as the base class does."""

    def forward(self, inputs, head=None):
        return self.model(*inputs)


class OfNamed(OfPairs):
    """Takes ``{"pair": Pair, "label": ...}``."""

    def unpack(self, batch):
        return batch["pair"], batch["label"]


def collate_dicts(samples):
    inputs, labels = (torch.stack(parts) for parts in zip(*samples, strict=True))
    return {"left": inputs[:, :3], "right": inputs[:, 3:], "scale": torch.tensor(1.0), "label": labels}


def collate_pairs(samples):
    batch = collate_dicts(samples)
    return (batch["left"], batch["right"]), batch["label"]


def collate_named(samples):
    batch = collate_dicts(samples)
    return {"pair": Pair(batch["left"], batch["right"]), "label": batch["label"], "names": ["x"] * len(batch["label"])}


def collate_encodings(samples):
    from transformers import BatchEncoding

    return BatchEncoding(collate_dicts(samples))


KINDS = {
    "dict": (OfDicts, collate_dicts),
    "tuple": (OfPairs, collate_pairs),
    "named tuple": (OfNamed, collate_named),
    "keys": (by_keys, collate_dicts),
    "encodings": (by_keys, collate_encodings),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def states():
    torch.manual_seed(0)
    base = Net().state_dict()
    noisy = [{n: t + 0.3 * torch.rand_like(t) if t.is_floating_point() else t for n, t in base.items()} for _ in "ab"]
    return base, dict(zip("ab", noisy, strict=True))


@pytest.fixture
def sets():
    torch.manual_seed(1)
    return {task: TensorDataset(torch.randn(SIZE, 5), torch.randint(3, (SIZE,))) for task in "ab"}


def loaders_of(sets, collate=None):
    return {f"id/{task}": DataLoader(data, 4, collate_fn=collate) for task, data in sets.items()}


@pytest.fixture
def both(kind, states, sets):
    """Modules and loaders: as that kind, and as tensors."""
    subclass, collate = kind
    made = subclass(Net(), TaskVectors.open(*states)), MergeModule(AsTensor(), TaskVectors.open(*states))
    return [(module, loaders_of(sets, how)) for module, how in zip(made, (collate, None), strict=True)]


def test_validation_and_sweep(both, make_trainer):
    found = []
    for module, loaders in both:
        entries = make_trainer().validate(module, loaders, verbose=False)
        recipes = {"half": {"scale": 0.5}, "whole": {"scale": 1.0}}
        swept = sweep(make_trainer(), module, recipes, loaders, at_once=1)
        found.append((entries, swept.outcomes))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


@pytest.mark.parametrize(("collected", "rule"), [("fisher", "fisher"), ("gram", "regmean")])
@pytest.mark.parametrize("samples", [256, 6])
def test_statistics_of_data_and_the_rules_that_need_them(collected, rule, samples, both, make_trainer):
    found = []
    for module, loaders in both:
        collector = CollectDataStatistics(collected, samples=samples)
        make_trainer(callbacks=[collector]).validate(module, loaders, verbose=False)
        merged = merge(module.vectors, rule, statistics=collector.statistics)
        found.append((collector.statistics, merged))
    assert "left.weight" in found[0][0]["a"]
    for task in "ab":
        for name, value in found[1][0][task].items():
            torch.testing.assert_close(found[0][0][task][name], value)
    for name, value in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], value, atol=1e-4, rtol=1e-4)


def test_adamerging(both, make_trainer):
    coefficients = []
    for module, loaders in both:
        learning = AdaMergingModule(module, lr=0.05)
        make_trainer(max_steps=5).fit(learning, loaders)
        coefficients.append(learning.coefficients.detach())
    assert not torch.allclose(coefficients[0], torch.full_like(coefficients[0], 0.3))
    torch.testing.assert_close(*coefficients)


def test_recalibrated_statistics(both, make_trainer):
    for module, loaders in both:
        recalibrate = RecalibrateBatchNorm(loaders["id/a"])
        make_trainer(callbacks=[recalibrate]).validate(module, loaders, verbose=False)
    first, second = (module.model.norm for module, _ in both)
    torch.testing.assert_close(first.running_mean, second.running_mean)
    torch.testing.assert_close(first.running_var, second.running_var)
    assert first.num_batches_tracked == 4


def test_predictions(both, make_trainer):
    found = [make_trainer().predict(module, list(loaders.values())) for module, loaders in both]
    torch.testing.assert_close(torch.cat(found[0][0]), torch.cat(found[1][0]))


def test_recalibration_of_a_module_of_ones_own(make_trainer, sets):
    class Foreign(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, batch):
            return self.net(batch["left"], batch["right"])

    module = Foreign()
    RecalibrateBatchNorm(DataLoader(sets["a"], 4, collate_fn=collate_dicts)).recalibrate_(module)
    assert module.net.norm.num_batches_tracked == 4


def test_recalibration_of_a_module_of_ones_own_by_keys(sets):
    class Foreign(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, left, right):
            return self.net(left, right)

    torch.manual_seed(0)
    module = Foreign()
    batches = DataLoader(sets["a"], SIZE, collate_fn=collate_dicts)
    RecalibrateBatchNorm(batches, batch_keys=(("left", "right"), "label")).recalibrate_(module)
    inputs = sets["a"].tensors[0]
    with torch.no_grad():
        expected = (module.net.left(inputs[:, :3]) + module.net.right(inputs[:, 3:])).mean(0)
    torch.testing.assert_close(module.net.norm.running_mean, expected)
    with pytest.raises(UnknownNameError, match="'lefd'. Did you mean 'left'"):
        RecalibrateBatchNorm(batches, batch_keys=("lefd", "label")).recalibrate_(module)


def test_batches_of_inputs_alone(states, sets, make_trainer):
    module = MergeModule(AsTensor(), TaskVectors.open(*states)).merge_()
    only = TensorDataset(sets["a"].tensors[0])
    RecalibrateBatchNorm(DataLoader(only, 4)).recalibrate_(module)
    assert module.model.norm.num_batches_tracked == 4
    make_trainer(max_steps=1).fit(AdaMergingModule(module), {"id/a": DataLoader(only, 4), "id/b": DataLoader(only, 4)})


def test_a_batch_of_an_unknown_kind_is_refused(states, sets, make_trainer):
    module = MergeModule(AsTensor(), TaskVectors.open(*states))
    with pytest.raises(TypeError, match=r"loader 'id/a': a batch must be \(inputs, targets\), not dict; override"):
        make_trainer().validate(module, loaders_of(sets, collate_dicts), verbose=False)
    named = MergeModule(AsTensor(), TaskVectors.open(*states), batch_keys=("inputs", "label"))
    message = "loader 'id/a': unknown key in batch_keys: 'inputs'. Known: left, right"
    loaders = loaders_of(sets, collate_dicts)
    with pytest.raises(ValueError, match=message):
        make_trainer().test(named, loaders, verbose=False)
    with pytest.raises(ValueError, match=message):
        sweep(make_trainer(), named, {"own": named.recipe}, loaders)
    with pytest.raises(ValueError, match=message):
        make_trainer(callbacks=[CollectDataStatistics("gram")]).validate(named, loaders, verbose=False)
    with pytest.raises(ValueError, match=message):
        make_trainer(max_steps=1).fit(AdaMergingModule(named), loaders)


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
def test_a_combined_loader_of_another_mode_is_refused_by_its_mode(mode, states, sets, make_trainer):
    module = MergeModule(AsTensor(), TaskVectors.open(*states))
    loaders = loaders_of(sets)
    for stage in ("validate", "test"):
        with pytest.raises(ValueError, match=f"mode '{mode}' mixes"):
            getattr(make_trainer(), stage)(module, CombinedLoader(loaders, mode), verbose=False)
    with pytest.raises(ValueError, match=f"mode '{mode}' mixes"):
        sweep(make_trainer(), module, {"own": module.recipe}, CombinedLoader(loaders, mode))
    with pytest.raises(ValueError, match=f"mode '{mode}' mixes"):
        make_trainer(callbacks=[CollectDataStatistics("gram")]).validate(module, CombinedLoader(loaders, mode))


def test_a_combined_loader_within_loaders_is_refused_by_name(states, sets, make_trainer):
    module = MergeModule(AsTensor(), TaskVectors.open(*states))
    inner = CombinedLoader(list(loaders_of(sets).values()), "sequential")
    with pytest.raises(ValueError, match="'id/a' is a CombinedLoader of loaders"):
        make_trainer().validate(module, {"id/a": inner}, verbose=False)


def test_a_sequential_combined_loader_is_its_loaders(states, sets, make_trainer):
    module = MergeModule(AsTensor(), TaskVectors.open(*states))
    loaders = loaders_of(sets)
    expected = make_trainer().validate(module, loaders, verbose=False)
    assert make_trainer().validate(module, CombinedLoader(loaders, "sequential"), verbose=False) == expected
    first = sweep(make_trainer(), module, {"own": module.recipe}, CombinedLoader(loaders, "sequential"))
    assert first.figures("own") == pytest.approx({name: v for entry in expected for name, v in entry.items()})


def test_adamerging_refuses_modes_that_leave_tasks_out(states, sets, make_trainer):
    for mode in ("max_size", "sequential"):
        module = AdaMergingModule(MergeModule(AsTensor(), TaskVectors.open(*states)))
        with pytest.raises(ValueError, match=mode):
            make_trainer(max_steps=1).fit(module, CombinedLoader(loaders_of(sets), mode))
    module = AdaMergingModule(MergeModule(AsTensor(), TaskVectors.open(*states)))
    make_trainer(max_steps=1).fit(module, CombinedLoader(loaders_of(sets), "min_size"))

"""Figures are as precise as they were asked for, wherever a merge runs, and none overflows unsaid."""

import contextlib

import pytest
import torch
from _helpers.every_rule import SHAPES, changed, statistics_for, task_names, vectors_for
from _helpers.states import assert_same_bits, open_vectors, random_state
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import CombinedLoader
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import (
    AdaMergingModule,
    LiNeS,
    MergeModule,
    MergeRecipe,
    OnlineMerge,
    PruneAndMerge,
    RecalibrateBatchNorm,
    TaskVectors,
    collect_statistics,
    layers_from_names,
    merge,
    merge_transform,
    save_merged,
    score_layers,
)
from lwptv_lightning.callbacks import CollectDataStatistics
from lwptv_lightning.checkpoints import CheckpointError
from lwptv_lightning.evaluation import in_precision
from lwptv_lightning.inspection import check
from lwptv_lightning.merging import Merge, install_
from lwptv_lightning.rules import RULES
from lwptv_lightning.saliency import SCORES
from lwptv_lightning.search import sweep

EVERY_RULE = pytest.mark.parametrize("rule", sorted(RULES))

# Surroundings


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def lowered_products():
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


SURROUNDINGS = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "products in bfloat16": lowered_products,
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
}


def with_coefficients(rule):
    extra = {
        "task_arithmetic": {"coefficients": [0.1, 0.2, 0.3]},
        "adamerging": {"coefficients": {"*": [0.1, 0.2, 0.3]}, "plus_plus": True},
        "weighted_average": {"weights": [0.1, 0.2, 0.3]},
        "multislerp": {"weights": [0.1, 0.2, 0.3]},
    }
    return {"name": rule, **extra.get(rule, {})}


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@EVERY_RULE
def test_surroundings_change_no_bit(rule, surrounding):
    vectors = vectors_for(rule)
    data = statistics_for(rule, vectors)
    recipe = MergeRecipe(with_coefficients(rule), ratio=0.3, score="uniqueness", layer_scaling=LiNeS())
    expected = merge(vectors, recipe, data=data)
    with SURROUNDINGS[surrounding]():
        assert_same_bits(merge(vectors, recipe, data=data), expected)


def write_adapter(folder):
    factors = random_state(1, shapes={"A": (4, 16), "B": (16, 4)})
    named = {f"base_model.model.fc.lora_{factor}.weight": tensor for factor, tensor in factors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 4, "r": 4}')
    return factors["B"].double() @ factors["A"].double()


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_adapter_is_as_precise_in_any_surroundings(surrounding, dtype, tmp_path):
    product = write_adapter(tmp_path)
    base = {"fc.weight": torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)}
    with SURROUNDINGS[surrounding]():
        vectors = TaskVectors.open(base, {"a": tmp_path})
        merged = merge(vectors, MergeRecipe(scale=1.0, dtype="float64"))
    assert torch.equal(merged["fc.weight"], (product + base["fc.weight"].double()).to(dtype))
    assert torch.equal(vectors.expert("a", "fc.weight"), base["fc.weight"] + product.to(dtype))


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_check_finds_the_same_in_any_surroundings(surrounding):
    vectors = vectors_for("ties")
    base = {name: vectors.base(name) for name in vectors.names}
    tasks = {task: {name: vectors.expert(task, name) for name in vectors.names} for task in vectors.tasks}
    expected = check(base, tasks)
    with SURROUNDINGS[surrounding]():
        assert check(base, tasks) == expected


# Float64 asked is float64 computed


class Seen(TorchDispatchMode):
    """Remembers which operations made float32 numbers of what is a part of the arithmetic."""

    HARMLESS = ("aten.lift_fresh", "aten.zeros", "aten.expand", "aten.view", "aten.slice", "aten.alias", "aten.detach")

    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, list | tuple) else [made]:
            is_single = isinstance(each, torch.Tensor) and each.dtype in (torch.float32, torch.bfloat16, torch.float16)
            if is_single and each.numel() and not str(function).startswith(self.HARMLESS):
                self.operations.add(str(function))
        return made


def nearby(state, factor):
    """Values that float32 cannot hold."""
    return {name: tensor.double() * (1 + factor) for name, tensor in state.items()}


def vectors_in_float64(rule):
    vectors = vectors_for(rule)
    base = nearby({name: vectors.base(name) for name in vectors.names}, 3.3e-10)
    tasks = {
        task: nearby({name: vectors.expert(task, name) for name in vectors.names}, 7.7e-10) for task in vectors.tasks
    }
    data = statistics_for(rule, vectors)
    return open_vectors(base, tasks), data and {task: nearby(found, 5.1e-10) for task, found in data.items()}


@EVERY_RULE
def test_no_rule_leaves_float64_on_the_way(rule):
    vectors, data = vectors_in_float64(rule)
    recipe = MergeRecipe(with_coefficients(rule), dtype="float64", ratio=0.3, layer_scaling=LiNeS())
    with Seen() as seen:
        merge(vectors, recipe, data=data)
    assert seen.operations == set()


@EVERY_RULE
def test_float64_of_float32_checkpoints_is_that_of_float64_checkpoints(rule):
    single = vectors_for(rule)
    double = open_vectors(
        {name: single.base(name).double() for name in single.names},
        {task: {name: single.expert(task, name).double() for name in single.names} for task in single.tasks},
    )
    data = statistics_for(rule, single)
    recipe = MergeRecipe(with_coefficients(rule), dtype="float64", ratio=0.3)
    found, exact = (merge(vectors, recipe, data=data) for vectors in (single, double))
    assert {tensor.dtype for tensor in exact.values()} == {torch.float64}
    assert_same_bits(found, {name: tensor.float() for name, tensor in exact.items()})


def test_the_seen_mode_sees():
    vectors, _ = vectors_in_float64("ties")
    with Seen() as seen:
        merge(vectors, MergeRecipe("ties"))
    assert seen.operations


@pytest.mark.parametrize("coefficient", [0.1, 1 / 3])
def test_coefficients_count_in_float64(coefficient):
    base, task = {"w": torch.zeros(1, dtype=torch.float64)}, {"w": torch.ones(1, dtype=torch.float64)}
    vectors = TaskVectors.open(base, {"a": task})
    for rule in (
        {"name": "task_arithmetic", "coefficients": [coefficient]},
        {"name": "adamerging", "coefficients": {"*": [coefficient]}},
        {"name": "weighted_average", "weights": [coefficient], "normalize": False},
    ):
        assert merge(vectors, MergeRecipe(rule, scale=1.0, dtype="float64"))["w"].item() == coefficient


def test_scores_of_a_recipe_in_float64_are_of_differences_in_float64():
    # In float32 the two task vectors are equal, and the first layer would go.
    base = {f"l{i}.weight": torch.ones(4, dtype=torch.float64) for i in range(2)}
    task = {"l0.weight": base["l0.weight"] + 2e-10, "l1.weight": base["l1.weight"] + 1e-10}
    vectors = TaskVectors.open(base, {"a": task})
    merged = merge(vectors, MergeRecipe(ratio=0.5, dtype="float64", scale=1.0))
    assert torch.equal(merged["l1.weight"], base["l1.weight"])
    assert not torch.equal(merged["l0.weight"], base["l0.weight"])


@pytest.mark.parametrize("asked", ["float32", "float64"])
def test_what_a_rule_leaves_alone_of_a_float64_base_keeps_its_bits(asked):
    base = {"w": torch.tensor([1 + 1e-12, 2 + 1e-12], dtype=torch.float64)}
    vectors = TaskVectors.open(base, {"a": {"w": base["w"] + torch.tensor([1.0, 0.0])}})
    merged = merge(vectors, MergeRecipe(scale=1.0, dtype=asked))["w"]
    assert merged[1] == base["w"][1]
    assert abs(merged[0] - base["w"][0] - 1) < 1e-6


# Statistics of nearly equal experts


def near_experts(distance, count, tasks=3, size=1.0):
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(count, generator=generator, dtype=torch.float64)
    change = torch.randn(tasks, count, generator=generator, dtype=torch.float64)
    rows = (size * (common + distance * change)).float()
    states = {task: {"w": row.clone()} for task, row in zip("abc", rows, strict=False)}
    return TaskVectors.open({"w": torch.zeros(count)}, states), rows.double()


@pytest.mark.parametrize("distance", [1e-1, 1e-4, 1e-6, 3e-7])
@pytest.mark.parametrize("count", [1000, 500_000])  # one block and several
def test_deviation_and_uniqueness_of_nearly_equal_experts(distance, count):
    vectors, rows = near_experts(distance, count)
    statistics = collect_statistics(vectors, layers_from_names(vectors.names))
    mean = rows.mean(0)
    expected = ((rows - mean).square().mean(1)).sqrt()
    torch.testing.assert_close(score_layers(statistics, "deviation").values[:, 0], expected, rtol=1e-6, atol=0)
    # 1 - cos is half the squared distance of the directions.
    directions, direction = rows / rows.norm(dim=1, keepdim=True), mean / mean.norm()
    expected = (directions - direction).square().sum(1) / 2
    torch.testing.assert_close(score_layers(statistics, "uniqueness").values[:, 0], expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_equal_experts_deviate_by_nothing(tasks):
    vectors, _ = near_experts(0.0, 1000, tasks)
    statistics = collect_statistics(vectors, layers_from_names(vectors.names))
    for score in ("deviation", "uniqueness", "conflict"):
        assert not score_layers(statistics, score).values.any()


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("score", sorted(SCORES))
def test_scores_neither_vanish_nor_overflow_in_squares(score, size):
    vectors, rows = near_experts(1e-1, 1000, size=size)
    statistics = collect_statistics(vectors, layers_from_names(vectors.names))
    values = score_layers(statistics, score).values
    if score in ("l2", "rms", "mean_abs"):
        exact = {"l2": rows.norm(dim=1), "rms": rows.square().mean(1).sqrt(), "mean_abs": rows.abs().mean(1)}[score]
        torch.testing.assert_close(values[:, 0], exact, rtol=1e-6, atol=0)
    elif score in ("deviation", "uniqueness"):
        assert (values > 0).all()
        assert torch.isfinite(values).all()


# Overflow


def overflowing(dtype=torch.float16, size=60000.0):
    base = {"stem.weight": torch.ones(2, 2, dtype=dtype), "fc.weight": torch.full((2, 2), size, dtype=dtype)}
    return TaskVectors.open(base, {"a": {"stem.weight": base["stem.weight"] + 1, "fc.weight": base["fc.weight"] * 0.5}})


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def forward(self, inputs):
        return self.fc(self.stem(inputs))


SINKS = {
    "merge": lambda vectors, recipe, path: merge(vectors, recipe),
    "blocks": lambda vectors, recipe, path: list(Merge(vectors, recipe).plan().pieces()),
    "file": lambda vectors, recipe, path: save_merged(vectors, recipe, path / "merged.safetensors"),
    "module": lambda vectors, recipe, path: MergeModule(Two(), vectors, recipe).merge_(),
    "graph": lambda vectors, recipe, path: merge_transform(Two(), vectors, recipe),
}
OVERFLOW = r"'fc.weight' would overflow: its largest merged value is 90000, beyond 65504, the largest of torch.float16"


@pytest.mark.parametrize("sink", SINKS)
def test_what_overflows_the_dtype_of_the_base_is_named(sink, tmp_path):
    with pytest.raises(ValueError, match=OVERFLOW):
        SINKS[sink](overflowing(), MergeRecipe("task_arithmetic", scale=-1.0), tmp_path)
    assert list(tmp_path.iterdir()) == []


@EVERY_RULE
def test_every_rule_names_what_overflows(rule):
    zeros = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in SHAPES.items()}
    tasks = {task: changed(7, 100.0) for task in task_names(rule)}
    tasks = {task: {name: tensor.half() for name, tensor in state.items()} for task, state in tasks.items()}
    vectors = open_vectors(zeros, tasks)
    with pytest.raises(ValueError, match="would overflow.*torch.float16"):
        merge(vectors, MergeRecipe(rule, scale=1e6), data=statistics_for(rule, vectors))


def test_a_module_of_less_range_than_the_base_is_as_it_was(tmp_path):
    vectors = overflowing(torch.float32, 1e6)
    module = Two().half()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match="'fc.weight' would overflow.*torch.float16"):
        MergeModule(module, vectors, "task_arithmetic").merge_()
    with pytest.raises(ValueError, match="'fc.weight' would overflow.*torch.float16"):
        install_(module, {"stem.weight": torch.zeros(2, 2), "fc.weight": torch.full((2, 2), 7e4)})
    assert_same_bits(dict(module.state_dict()), before)


def test_a_file_in_less_range_than_the_module_names_what_overflows(tmp_path):
    module = MergeModule(Two(), overflowing(), MergeRecipe("task_arithmetic", scale=0.0)).merge_()
    with torch.no_grad():
        module.model.fc.weight.fill_(7e4)
    with pytest.raises(ValueError, match="'fc.weight' would overflow.*torch.float16"):
        module.save_merged(tmp_path / "merged.safetensors")


def test_what_overflows_while_it_is_computed_is_named():
    base = {"w": torch.full((2,), 3e38)}
    vectors = TaskVectors.open(base, {"a": {"w": torch.full((2,), 1e38)}})
    recipe = MergeRecipe("task_arithmetic", scale=-1.0)
    with pytest.raises(ValueError, match="'w' would overflow.*torch.float32"):
        merge(vectors, recipe)


# Eight bits

EIGHT_BITS = [torch.float8_e4m3fn, torch.float8_e5m2]


def eight_bits(dtype, change=0.5):
    return {"w": torch.full((4,), 1.0 + change).to(dtype), "b": torch.full((2,), 1.0)}


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("broken", ["base", "a"])
def test_nan_of_eight_bits_is_named(dtype, broken):
    states = {"base": eight_bits(dtype, 0.0), "a": eight_bits(dtype)}
    states[broken]["w"] = torch.tensor([1.0, float("nan"), 1.0, 1.0]).to(dtype)
    vectors = TaskVectors.open(states["base"], {"a": states["a"]})
    for asked in (
        lambda: merge(vectors, "ties"),
        lambda: merge(vectors, MergeRecipe(ratio=0.5)),
        lambda: vectors.stack("w"),
    ):
        with pytest.raises(CheckpointError, match="1 NaN or infinite values in 'w'"):
            asked()


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_eight_bits_are_merged_and_do_not_overflow(dtype):
    vectors = TaskVectors.open(eight_bits(dtype, 0.0), {"a": eight_bits(dtype)})
    merged = merge(vectors, MergeRecipe(scale=1.0))
    assert merged["w"].dtype == dtype
    assert merged["w"].float().tolist() == [1.5] * 4
    with pytest.raises(ValueError, match=f"'w' would overflow.*{dtype}"):
        merge(vectors, MergeRecipe(scale=1e6))


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_tied_weights_of_eight_bits_are_found(dtype):
    generator = torch.Generator().manual_seed(0)
    names = ("embed.weight", "head.weight", "fc.weight")

    def state():
        shared, own = torch.randn(2, 16, 16, generator=generator).to(dtype)
        return dict(zip(names, (shared, shared.clone(), own), strict=True))

    base, tasks = state(), {"a": state(), "b": state()}
    vectors = TaskVectors.open(base, tasks)
    assert vectors.tied == {"head.weight": "embed.weight"}
    merged = merge(vectors, MergeRecipe("dare", scale=0.3))
    assert torch.equal(merged["head.weight"].float(), merged["embed.weight"].float())
    assert [found.task for found in check(base, tasks)] == ["a", "b"]


def test_an_adapter_on_a_base_of_eight_bits(tmp_path):
    product = write_adapter(tmp_path)
    vectors = TaskVectors.open({"fc.weight": torch.ones(16, 16).to(torch.float8_e4m3fn)}, {"a": tmp_path})
    torch.testing.assert_close(vectors.expert("a", "fc.weight"), product.float() + 1)
    merged = merge(vectors, MergeRecipe(scale=1.0))["fc.weight"]
    assert torch.equal(merged.float(), (product.float() + 1).to(torch.float8_e4m3fn).float())


def test_nan_of_a_base_whose_expert_is_a_difference_is_named(tmp_path):
    write_adapter(tmp_path)
    base = {"fc.weight": torch.full((16, 16), torch.nan)}
    with pytest.raises(ValueError, match="'fc.weight' holds NaN"):
        merge(TaskVectors.open(base, {"a": tmp_path}), MergeRecipe())


# The trainer's precision

PRECISIONS = {
    "64-true": torch.float64,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "bf16-mixed": torch.float32,
}
EVERY_PRECISION = pytest.mark.parametrize("precision", PRECISIONS)
TOLERANCE = {"64-true": 1e-6, "bf16-true": 0.05, "16-true": 0.01, "bf16-mixed": 0.05}


class Net(nn.Module):
    """Batch normalisation between two layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.fc = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, inputs):
        return self.fc(self.norm(self.stem(inputs)).relu())


def make_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net().eval()


def data(seed, count=48, size=2.0):
    generator = torch.Generator().manual_seed(seed)
    inputs = size * torch.randn(count, 6, generator=generator) + 1
    return TensorDataset(inputs, torch.randint(0, 4, (count,), generator=generator))


def net_vectors():
    return TaskVectors.open(make_net(), {"a": make_net(1), "b": make_net(2)})


LOADERS = {"id/a": DataLoader(data(1), batch_size=16), "id/b": DataLoader(data(2), batch_size=16)}


def validated(make_trainer, module, precision, callbacks=()):
    trainer = make_trainer(precision=precision, callbacks=list(callbacks))
    figures = trainer.validate(module, LOADERS, verbose=False)
    return {name: value for part in figures for name, value in part.items()}


class FineTuning(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = make_net(3).train()
        self.losses = []

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(make_trainer, precision, callbacks=()):
    module = FineTuning()
    trainer = make_trainer(max_epochs=1, precision=precision, callbacks=list(callbacks))
    trainer.fit(module, DataLoader(data(3), batch_size=16), DataLoader(data(4), batch_size=16))
    return module, trainer


@EVERY_PRECISION
def test_online_merge_validates_in_the_precision_of_the_run(precision, make_trainer):
    merging = MergeModule(make_net(), net_vectors().select(["a"]), MergeRecipe("ties", scale=0.7))
    online = OnlineMerge(merging, LOADERS, task="b", backbone="net")
    module, trainer = fit(make_trainer, precision, [online])
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("merged/")}
    assert {tensor.dtype for tensor in merging.model.parameters()} == {torch.float32}
    # By hand: the weights as they are after the epoch, merged, in a trainer of this precision.
    vectors = net_vectors().select(["a"]).with_task("b", dict(module.net.state_dict()))
    by_hand = validated(make_trainer, MergeModule(make_net(), vectors, MergeRecipe("ties", scale=0.7)), precision)
    assert found == {f"merged/{name}": pytest.approx(value) for name, value in by_hand.items()}
    without, _ = fit(make_trainer, precision)
    assert without.losses == module.losses
    assert_same_bits(dict(module.state_dict()), dict(without.state_dict()))


@EVERY_PRECISION
@pytest.mark.parametrize("own", [True, False])
def test_batch_norm_is_measured_in_the_precision_of_the_run(precision, own, make_trainer):
    loader = DataLoader(data(5, 160), batch_size=16)
    recalibrate, seen = RecalibrateBatchNorm(loader), []

    class Look(Callback):
        def on_validation_batch_start(self, trainer, pl_module, *batch):
            net = pl_module.model if own else pl_module.net
            seen.append({name: buffer.clone() for name, buffer in net.norm.named_buffers()})

    module = MergeModule(make_net(), net_vectors()) if own else FineTuning()
    loaders = LOADERS if own else LOADERS["id/a"]
    callbacks = [recalibrate, Look()] if own else [PruneAndMerge(net_vectors()), recalibrate, Look()]
    make_trainer(precision=precision, callbacks=callbacks).validate(module, loaders, verbose=False)
    merged = Net()
    merged.load_state_dict(merge(net_vectors(), MergeRecipe()))
    hidden = [merged.stem(batch[0]).detach() for batch in loader]
    mean = torch.stack([part.mean(0) for part in hidden]).mean(0)
    variance = torch.stack([part.var(0) for part in hidden]).mean(0)
    assert seen[0]["running_mean"].dtype == PRECISIONS[precision]
    tolerance = {"64-true": 1e-5, "bf16-true": 0.02, "16-true": 0.003, "bf16-mixed": 0.02}[precision]
    torch.testing.assert_close(seen[0]["running_mean"].float(), mean, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(seen[0]["running_var"].float(), variance, atol=tolerance, rtol=tolerance)


def test_running_statistics_that_overflow_are_named(make_trainer):
    loader = DataLoader(data(5, 32, size=3000.0), batch_size=16)
    module = MergeModule(make_net(), net_vectors())
    with pytest.raises(ValueError, match="'model.norm.running_var' would overflow.*torch.float16"):
        validated(make_trainer, module, "16-true", [RecalibrateBatchNorm(loader)])


@EVERY_PRECISION
def test_a_sweep_finds_what_a_validation_finds(precision, make_trainer):
    candidates = {"ties": MergeRecipe("ties"), "sum": MergeRecipe(scale=1.0, ratio=0.5)}
    module = MergeModule(make_net(), net_vectors())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = sweep(make_trainer(precision=precision), module, candidates, LOADERS)
    assert_same_bits(dict(module.state_dict()), before)
    for name, recipe in candidates.items():
        figures = validated(make_trainer, MergeModule(make_net(), net_vectors(), recipe), precision)
        found = result.figures(name)
        assert found.keys() >= LOADERS.keys()
        assert found == {figure: pytest.approx(figures[figure]) for figure in found}


@EVERY_PRECISION
@pytest.mark.parametrize("per", ["task", "tensor"])
def test_adamerging_learns_in_every_precision(precision, per, make_trainer):
    def learnt(precision):
        module = AdaMergingModule(MergeModule(make_net(), net_vectors()), per=per, lr=1e-3)
        make_trainer(max_epochs=2, precision=precision).fit(module, CombinedLoader(LOADERS, "min_size"))
        assert {tensor.dtype for tensor in module.merge_module.model.parameters()} == {torch.float32}
        return module

    found, exact = learnt(precision), learnt("32-true")
    assert found.coefficients.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    moved = (exact.coefficients - 0.3).abs().max().item()
    assert moved > 1e-3
    torch.testing.assert_close(found.coefficients.float(), exact.coefficients, atol=0.5 * moved, rtol=0)
    # What was learnt is what a merge by the recipe makes, not rounded on the way.
    recipe = found.recipe()
    made = merge(net_vectors(), recipe)
    for name, tensor in found.merged().items():
        torch.testing.assert_close(made[name].float(), tensor.detach().float(), atol=1e-6, rtol=1e-6)


def test_a_module_keeps_what_a_precision_would_round(make_trainer):
    module = MergeModule(make_net(), net_vectors())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with in_precision(make_trainer(precision="bf16-true"), module):
        assert module.model.fc.weight.dtype == torch.bfloat16
        install_(module.model, {"fc.bias": torch.full((4,), 0.3)})
    after = dict(module.state_dict())
    assert after.pop("model.fc.bias").tolist() == [torch.tensor(0.3).bfloat16().item()] * 4
    before.pop("model.fc.bias")
    assert_same_bits(after, before)


def test_adamerging_merges_exactly_inside_autocast(make_trainer):
    module = AdaMergingModule(MergeModule(make_net(), net_vectors()))
    module.load()
    expected = module.merged()
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(module.merged(), expected)


@EVERY_PRECISION
@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_data_statistics_in_every_precision(precision, kind, make_trainer):
    def collected(precision):
        collect = CollectDataStatistics(kind, samples=24)
        module = MergeModule(make_net(), net_vectors())
        make_trainer(precision=precision, callbacks=[collect]).validate(module, LOADERS, verbose=False)
        return collect.statistics

    found, exact = collected(precision), collected("32-true")
    for task, tensors in exact.items():
        for name, tensor in tensors.items():
            difference = (found[task][name] - tensor).norm() / tensor.norm()
            assert difference <= TOLERANCE[precision], (task, name)


@EVERY_PRECISION
def test_a_foreign_module_is_merged_from_exact_task_vectors(precision, make_trainer):
    module, seen = FineTuning(), []

    class Look(Callback):
        def on_validation_batch_start(self, trainer, pl_module, *batch):
            seen.append(pl_module.net.stem.weight.clone())

    trainer = make_trainer(precision=precision, callbacks=[PruneAndMerge(net_vectors(), "ties"), Look()])
    trainer.validate(module, LOADERS["id/a"], verbose=False)
    exact = merge(net_vectors(), "ties")["stem.weight"]
    dtype = PRECISIONS[precision]
    assert torch.equal(seen[0], exact.to(dtype))
    assert torch.equal(module.net.stem.weight, make_net(3).stem.weight.to(dtype))

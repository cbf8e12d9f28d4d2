"""Which weights belong together: task vectors by their bases' fingerprints, experts by figures of each tensor."""

import re
from dataclasses import replace

import pytest
import torch
from _helpers.states import noise
from lightning.pytorch import LightningModule
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import (
    CheckpointError,
    Provenance,
    TaskVectorCheckpoint,
    TaskVectors,
    merge,
    open_checkpoint,
)
from lwptv_lightning.checkpoints import fingerprint, tensor_fingerprints
from lwptv_lightning.cli import main
from lwptv_lightning.inspection import SAME_BASE, check, check_tables
from lwptv_lightning.task_vectors import sample

real = sample.measure


class FineTuning(LightningModule):
    """A backbone that all runs share, and a classifier of a run's own."""

    def __init__(self, classes, seed, start=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(start)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
            torch.manual_seed(seed)
            self.head = nn.Linear(8, classes)

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.head(self.net(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trained(make_trainer, tmp_path):
    """``trained(task, **options)``: a run's folder, with its base and task vector, and the module."""

    def run(task, classes=3, seed=1, backbone="", **options):
        module = FineTuning(classes, seed, **options)
        data = TensorDataset(
            torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)), torch.arange(8) % classes
        )
        callback = TaskVectorCheckpoint(tmp_path / task, task, backbone=backbone)
        make_trainer(max_epochs=1, callbacks=[callback]).fit(module, DataLoader(data, batch_size=4))
        return tmp_path / task, module

    return run


def as_of_earlier_versions(folder, tensors=False):
    """Write a task vector's file as earlier versions did: fingerprints by SHA-256, those of tensors only of late."""
    path, base = folder / "task_vector.safetensors", open_checkpoint(folder / "base.safetensors")
    with safe_open(path, "pt") as handle:
        about = Provenance.from_metadata(handle.metadata())
    by_sha256 = tensor_fingerprints(base, dict.fromkeys(about.base_tensors, "SHA-256")) if tensors else None
    about = replace(about, base=fingerprint(base, "SHA-256"), base_tensors=by_sha256)
    save_file(load_file(path), path, metadata=about.to_metadata())
    return folder


# Fingerprints of a shared backbone


@pytest.mark.parametrize("earlier", [None, {"tensors": True}, {}], ids=["new file", "of late", "of an early version"])
@pytest.mark.parametrize("classes", [3, 5], ids=["heads of one size", "heads of two sizes"])
def test_runs_from_one_backbone_with_heads_of_their_own_belong_together(classes, earlier, trained):
    first, one = trained("a", seed=1)
    second, other = trained("b", seed=2, classes=classes)
    if earlier is not None:
        as_of_earlier_versions(second, **earlier)
    base = load_file(first / "base.safetensors")
    vectors = TaskVectors.open(first / "base.safetensors", {"a": first, "b": second}, exclude=("head.*",))
    assert set(vectors.names) == {name for name in base if name.startswith("net.")}
    for row, module in enumerate((one, other)):
        for name in vectors.names:
            torch.testing.assert_close(vectors.stack(name)[row], module.state_dict()[name] - base[name])
    assert torch.equal(merge(vectors, "simple_average")["head.weight"], base["head.weight"])
    assert check(first / "base.safetensors", {"b": second}, exclude=["head.*"])[0].verdict == SAME_BASE
    stranger = {name: tensor + 1 for name, tensor in base.items()}
    with pytest.raises(CheckpointError, match="another base"):
        TaskVectors.open(stranger, {"b": second}, exclude=("head.*",))


@pytest.mark.parametrize("prefix", [None, "net."])
def test_the_backbone_alone_is_base_of_whole_modules(prefix, trained):
    first, _ = trained("a", seed=1)
    second, other = trained("b", seed=2, classes=5)
    backbone = {
        name.removeprefix("net."): t for name, t in load_file(first / "base.safetensors").items() if "net." in name
    }
    vectors = TaskVectors.open(backbone, {"a": first, "b": second}, prefix=prefix)
    assert set(vectors.names) == set(backbone)
    torch.testing.assert_close(vectors.expert("b", "0.weight"), other.net[0].weight.detach())


def test_a_head_that_is_not_excluded_is_named(trained):
    first, _ = trained("a", seed=1)
    second, _ = trained("b", seed=2)
    words = r"made from another base: 2 of its 6 tensors .* head\.bias, head\.weight\. .*exclude="
    with pytest.raises(CheckpointError, match=words):
        TaskVectors.open(first / "base.safetensors", {"a": first, "b": second})
    (found,) = check(first / "base.safetensors", {"b": second})
    assert re.search(words, found.verdict)


def test_another_backbone_is_refused_though_its_head_is_excluded(trained):
    first, _ = trained("a", seed=1)
    stranger, _ = trained("c", seed=3, start=7)
    with pytest.raises(CheckpointError, match=r"another base: 6 of its 6 tensors .* head\.bias, head\.weight, net\.0"):
        TaskVectors.open(first / "base.safetensors", {"c": stranger})
    with pytest.raises(CheckpointError, match=r"another base: 4 of its 6 tensors .* net\.0\.bias, net\.0\.weight"):
        TaskVectors.open(first / "base.safetensors", {"c": stranger}, exclude=("head.*",))


def test_a_file_of_an_earlier_version_without_its_base_cannot_be_told(trained):
    first, _ = trained("a", seed=1)
    second, _ = trained("b", seed=2)
    (as_of_earlier_versions(second) / "base.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"another base: expected the one with fingerprint \w{12}"):
        TaskVectors.open(first / "base.safetensors", {"b": second}, exclude=("head.*",))
    assert TaskVectors.open(first / "base.safetensors", {"a": as_of_earlier_versions(first)}).tasks == ("a",)


@pytest.mark.parametrize("classes", [10, 4])
def test_a_task_vectors_own_classifier_becomes_the_tasks_head(classes, make_vit, tmp_path):
    base, own = make_vit(num_classes=10).state_dict(), make_vit(num_classes=classes, seed=4).state_dict()
    own = {name: own[name] if name.startswith("head.") else tensor for name, tensor in base.items()}
    tau = {name: torch.full_like(tensor, 0.01) for name, tensor in own.items()}
    (tmp_path / "b").mkdir()
    save_file(own, tmp_path / "b" / "base.safetensors")
    own_base = open_checkpoint(own)
    about = Provenance(kind="task_vector", base=fingerprint(own_base), base_tensors=tensor_fingerprints(own_base))
    save_file(tau, tmp_path / "b" / "task_vector.safetensors", metadata=about.to_metadata())
    experts = {"a": noise(base, 1, 0.01), "b": tmp_path / "b"}
    vectors = TaskVectors.open(base, experts, model=make_vit(num_classes=10))
    assert vectors.classifiers == ("head",)
    state = vectors.classifier_state("b")
    assert torch.equal(state["head.weight"], own["head.weight"] + 0.01)
    (tmp_path / "b" / "base.safetensors").unlink()
    vectors = TaskVectors.open(base, experts, model=make_vit(num_classes=10))
    with pytest.raises(CheckpointError, match=r"'head\.weight' is a difference from weights that are not at hand"):
        vectors.classifier_state("b")


def test_a_task_vector_is_no_base(trained):
    first, _ = trained("a", seed=1)
    with pytest.raises(CheckpointError, match="this is a task vector, and the base must be whole weights"):
        TaskVectors.open(first, {"a": first})


def test_the_file_says_what_it_was_made_from(trained):
    first, _ = trained("a", seed=1)
    about = Provenance.of(open_checkpoint(first / "task_vector.safetensors"))
    base = open_checkpoint(first / "base.safetensors")
    assert about.base == fingerprint(base)
    assert about.base_tensors == tensor_fingerprints(base)
    assert Provenance.from_metadata(about.to_metadata()) == about


def test_another_expert_joins_though_its_head_is_of_another_base(trained):
    first, _ = trained("a", seed=1)
    second, _ = trained("b", seed=2)
    vectors = TaskVectors.open(first / "base.safetensors", {"a": first}, exclude=("head.*",))
    assert vectors.with_task("b", second).tasks == ("a", "b")


# One judgement for `check` and for a merge


def another_vit(make_vit, seed=5):
    return make_vit(seed=seed).state_dict()


def test_two_initialisations_of_a_small_vit_are_no_base_of_each_other(make_vit):
    base = make_vit().state_dict()
    whole = [torch.cat([state[name].flatten() for name in base]) for state in (base, another_vit(make_vit))]
    assert torch.cosine_similarity(*whole, dim=0) > 0.3, "the ones of the norms agree"
    for stranger in (another_vit(make_vit), noise(another_vit(make_vit), 1, 0.01)):
        (found,) = check(base, {"a": stranger})
        assert re.match(r"another base: cosine -?0\.0\d to its weights, the mean over \d+ tensors", found.verdict)


@pytest.mark.parametrize("scale", [0.001, 0.05])
def test_what_was_fine_tuned_is_of_its_base_and_merges_without_a_word(scale, make_vit):
    base = make_vit().state_dict()
    experts = {task: noise(base, seed, scale) for seed, task in enumerate("ab", start=1)}
    assert [found.verdict for found in check(base, experts)] == [SAME_BASE] * 2
    merge(TaskVectors.open(base, experts), "simple_average")


SPOILT = {
    "zeroed": lambda weight: torch.zeros_like(weight),
    "constant": lambda weight: torch.full_like(weight, 0.5),
    "re-initialised": lambda weight: (
        torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * weight.std()
    ),
    "permuted": lambda weight: weight.roll(7, 0),
    "permuted columns": lambda weight: weight.roll(5, 1),
    "shuffled": lambda weight: weight.flatten().flip(0).reshape(weight.shape),
    "100 times as large": lambda weight: 100 * weight,
    "0.01 times as large": lambda weight: weight / 100,
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("name", ["blocks.1.attn.qkv.weight", "blocks.0.mlp.fc2.weight"])
def test_an_outlier_is_named_by_check_and_told_by_a_merge(kind, name, make_vit):
    base = make_vit().state_dict()
    tuned = noise(base, 1, 0.002)
    spoilt = tuned | {name: SPOILT[kind]((base if kind == "shuffled" else tuned)[name])}
    expected = {"shuffled": "permuted", "permuted columns": "permuted"}.get(kind, kind)
    good, bad = check(base, {"good": noise(base, 2, 0.002), "bad": spoilt})
    assert (good.verdict, good.outliers) == (SAME_BASE, {})
    assert bad.outliers == {name: expected}
    assert bad.verdict == f"{expected}: {name}."
    assert not bad.passed
    told = {"permuted": "re-initialised or permuted", "re-initialised": "re-initialised or permuted"}
    with pytest.warns(UserWarning, match=f"task 'bad' .*{told.get(expected, expected)}: {re.escape(name)}"):
        merge(TaskVectors.open(base, {"good": tuned, "bad": spoilt}), "simple_average")


def test_a_merge_tells_of_small_tensors_too(make_vit):
    base = noise(make_vit().state_dict(), 5, 0.02)
    small = [name for name in base if base[name].numel() < 64]
    spoilt = noise(base, 1, 0.002) | {small[0]: torch.zeros_like(base[small[0]])}
    with pytest.warns(UserWarning, match=f"task 'a' .*zeroed: {re.escape(small[0])}"):
        merge(TaskVectors.open(base, {"a": spoilt}), "simple_average")


@pytest.mark.parametrize("classes", [2, 5])
def test_a_classifier_of_few_classes_is_not_taken_for_a_permuted_one(classes, make_vit):
    """Among its many short columns one is like any other."""
    base = {**make_vit().state_dict(), "head.weight": torch.randn(classes, 256)}
    tuned = noise(base, 1, 0.002) | {"head.weight": torch.randn(classes, 256)}
    assert check(base, {"a": tuned})[0].outliers == {"head.weight": "re-initialised"}


def test_a_merge_of_another_base_warns_with_figures_as_check_does(make_vit, tmp_path, capsys):
    base = make_vit().state_dict()
    experts = {"a": noise(base, 1, 0.002), "b": another_vit(make_vit)}
    vectors = TaskVectors.open(base, experts)
    with pytest.warns(UserWarning, match=r"task 'b' .*another base: cosine -?0\.0\d .*nearly 1.*lwptv check") as told:
        merge(vectors, "simple_average")
    assert len(told) == 1
    for name, state in {"base": base, **experts}.items():
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / f"{name}.safetensors")
    tasks = [f"{task}={tmp_path / task}.safetensors" for task in experts]
    with pytest.warns(UserWarning, match="another base"):
        main(["merge", f"{tmp_path / 'base.safetensors'}", *tasks, "--out", f"{tmp_path / 'merged.safetensors'}"])


def test_the_judgement_reads_a_sample_once(monkeypatch):
    base = {f"layers.{i}.weight": torch.randn(600, 600, generator=torch.Generator().manual_seed(i)) for i in range(20)}
    vectors = TaskVectors.open(base, {"a": noise(base, 1, 0.001)})
    measured = []
    monkeypatch.setattr(sample, "measure", lambda *given: measured.append(real(*given)) or measured[-1])
    for _ in range(3):
        merge(vectors, "simple_average")
    assert len(measured) == 20
    assert sum(figures.elements for figures in measured) < 0.02 * 20 * 600 * 600


def test_the_same_expert_twice_is_said():
    base = {"w": torch.randn(40, 40, generator=torch.Generator().manual_seed(0)), "b": torch.zeros(40)}
    tuned = noise(base, 1, 0.01)
    found = check(base, {"a": tuned, "b": noise(base, 2, 0.01), "c": tuned})
    assert [task.verdict for task in found] == [SAME_BASE, SAME_BASE, "has the same weights as a."]


def test_constants_and_freshly_begun_tensors_say_nothing():
    generator = torch.Generator().manual_seed(0)
    base = {"norm": torch.ones(64), "bias": torch.zeros(64), "cls": 1e-6 * torch.randn(64, generator=generator)}
    base["w"] = torch.randn(64, 64, generator=generator)
    (found,) = check(base, {"a": noise(base, 1, 0.02)})
    assert (found.verdict, found.outliers) == (SAME_BASE, {})


def test_outliers_stand_in_a_table_of_their_own(make_vit):
    base = make_vit().state_dict()
    name = "blocks.0.mlp.fc1.weight"
    findings = check(base, {"a": noise(base, 1, 0.002), "b": noise(base, 2, 0.002) | {name: 100 * base[name]}})
    *_, outliers = check_tables(findings)
    assert [list(column.cells) for column in outliers.columns] == [["b"], [name], ["100 times as large"]]


# Never "same base" where a merge refuses


def refusals(make_vit):
    base = make_vit().state_dict()
    tuned = noise(base, 1, 0.002)
    broken = tuned["norm.weight"].clone()
    broken[3] = torch.nan
    model = make_vit()
    return {
        "a pattern that matches nothing": (base, {"a": tuned}, {"exclude": ["nothing.*"]}),
        "nothing floating": ({"n": torch.arange(3)}, {"a": {"n": torch.arange(3)}}, {}),
        "everything excluded": (base, {"a": tuned}, {"exclude": ["*"]}),
        "no task": (base, {}, {}),
        "NaN": (base, {"a": tuned | {"norm.weight": broken}}, {}),
        "infinite": (base, {"a": tuned | {"norm.weight": broken.nan_to_num(torch.inf)}}, {}),
        "NaN in the base": (base | {"norm.weight": broken}, {"a": tuned}, {}),
        "a tensor short": (base, {"a": {key: tuned[key] for key in tuned if key != "norm.bias"}}, {}),
        "of another kind": (base, {"a": tuned | {"norm.bias": torch.zeros(48, dtype=torch.int64)}}, {}),
        "a base of another shape than the model's": (
            base | {"norm.bias": torch.zeros(7)},
            {"a": tuned | {"norm.bias": torch.ones(7)}},
            {"model": model},
        ),
        "a base of another architecture": ({"w": torch.ones(3)}, {"a": {"w": torch.zeros(3)}}, {"model": model}),
    }


def test_check_never_passes_what_a_merge_refuses(make_vit):
    for what, (base, tasks, options) in refusals(make_vit).items():
        with pytest.raises(ValueError):  # noqa: PT011 (any refusal)
            merge(TaskVectors.open(base, tasks, **options), "simple_average")
        try:
            found = check(base, tasks, **options)
        except ValueError:
            continue
        assert not any(each.passed for each in found), what


def test_nan_among_running_statistics_is_seen():
    bn = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).state_dict()
    broken = noise(bn, 1, 0.01)
    broken["1.running_var"][2] = torch.nan
    (found,) = check(bn, {"a": broken})
    assert (found.verdict, found.outliers) == ("NaN or infinite weights.", {"1.running_var": "NaN or infinite"})


def test_the_models_shapes_are_compared(make_vit, tmp_path, capsys):
    base = make_vit().state_dict()
    other = base | {"norm.weight": torch.ones(50)}
    with pytest.raises(
        CheckpointError, match=r"does not fit the model, VisionTransformer: 'norm\.weight' has shape \(50,\)"
    ):
        check(other, {"a": other}, model=make_vit())
    save_file(base, tmp_path / "base.safetensors")
    options = ["--model", "vit_tiny_patch16_224", "--model-option", "img_size=32"]
    with pytest.raises(SystemExit, match=r"does not fit the model") as stop:
        main(["check", f"{tmp_path / 'base.safetensors'}", f"a={tmp_path / 'base.safetensors'}", *options])
    assert stop.value.code


def test_a_classifier_of_another_size_still_fits_the_model(make_vit):
    base = make_vit(num_classes=10).state_dict()
    assert check(base, {"a": noise(base, 1, 0.002)}, model=make_vit(num_classes=3))[0].passed

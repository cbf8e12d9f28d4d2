import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lwptv_lightning import CheckpointError, TaskVectors
from lwptv_lightning.registry import UnknownNameError


def test_stack_is_fine_tuned_minus_base(vectors, base_state, task_states):
    assert vectors.tasks == ("a", "b", "c")
    assert vectors.names == tuple(base_state)
    assert len(vectors) == 3
    for name, base in base_state.items():
        tau = vectors.stack(name)
        assert tau.dtype == torch.float32
        for row, task in zip(tau, task_states, strict=True):
            assert row.shape == base.shape
            expected = [x - y for x, y in zip(task_states[task][name].flatten(), base.flatten(), strict=True)]
            assert row.flatten().tolist() == [float(value) for value in expected]


def test_a_stack_is_the_callers_own(vectors, base_state):
    vectors.stack("fc.weight").fill_(9)
    assert vectors.stack("fc.weight").abs().max() < 1
    assert torch.equal(vectors.base("fc.weight"), base_state["fc.weight"])


def test_mixed_dtypes_are_subtracted_in_float32(base_state):
    expert = {name: (tensor + 1).bfloat16() for name, tensor in base_state.items()}
    tau = TaskVectors.open(base_state, {"a": expert}).stack("fc.weight")
    assert torch.equal(tau[0], expert["fc.weight"].float() - base_state["fc.weight"])
    exact = TaskVectors.open(base_state, {"a": expert}).stack("fc.weight", dtype=torch.float64)
    assert torch.equal(exact[0], expert["fc.weight"].double() - base_state["fc.weight"].double())


def test_integer_tensors_are_the_bases():
    base = {"w": torch.zeros(2), "steps": torch.tensor(7)}
    vectors = TaskVectors.open(base, {"a": {"w": torch.ones(2), "steps": torch.tensor(9)}})
    assert (vectors.names, vectors.copied, vectors.shared_names) == (("w",), ("steps",), ("w", "steps"))
    assert vectors.base("steps") == 7
    assert vectors.expert("a", "steps") == 9


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_files_and_dicts_may_be_mixed(suffix, base_state, task_states, tmp_path):
    path = tmp_path / f"a.{suffix}"
    save_file(task_states["a"], path) if suffix == "safetensors" else torch.save(task_states["a"], path)
    mixed = TaskVectors.open(base_state, {"a": path, "b": task_states["b"]})
    plain = TaskVectors.open(base_state, {task: task_states[task] for task in "ab"})
    assert all(torch.equal(mixed.stack(name), plain.stack(name)) for name in base_state)


def test_select_keeps_the_order_given(vectors):
    chosen = vectors.select(["c", "a"])
    assert chosen.tasks == ("c", "a")
    assert torch.equal(chosen.stack("fc.weight"), vectors.stack("fc.weight")[[2, 0]])
    with pytest.raises(UnknownNameError, match="unknown task 'd'"):
        vectors.select(["d"])


# Misfits


def test_missing_tensor_is_named_with_the_nearest(base_state, task_states):
    task_states["b"]["fc.weights"] = task_states["b"].pop("fc.weight")
    with pytest.raises(CheckpointError) as raised:
        TaskVectors.open(base_state, task_states)
    assert str(raised.value) == (
        "task 'b' (state dict) misses tensors that the base has: fc.weight. Did you mean 'fc.weights'? "
        "Tensors that are not to be merged go into exclude=(...)."
    )


def test_extra_tensor_is_named(base_state, task_states):
    task_states["c"]["probe.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"task 'c' .* has tensors that the base has not: probe\.weight\. .*excl"):
        TaskVectors.open(base_state, task_states)


def test_differing_shape_is_named(base_state, task_states):
    task_states["a"]["head.weight"] = torch.ones(9, 5)
    with pytest.raises(
        CheckpointError, match=r"'head\.weight' has shape \(9, 5\), expected \(2, 5\) .*exclude"
    ) as raised:
        TaskVectors.open(base_state, task_states)
    assert "another size becomes the task's head where model=... tells" in str(raised.value)
    task_states["a"]["head.weight"] = torch.ones(2, 6)  # of other features
    with pytest.raises(CheckpointError, match=r"has shape \(2, 6\), expected \(2, 5\) as in the base\. Ten"):
        TaskVectors.open(base_state, task_states)


def test_differing_kind_is_named(base_state, task_states):
    task_states["a"]["gain"] = torch.tensor(3)
    with pytest.raises(CheckpointError, match=r"'gain' is torch\.int64, expected torch\.float32"):
        TaskVectors.open(base_state, task_states)


def test_excluded_tensors_may_differ(base_state, task_states):
    task_states["a"]["head.weight"] = torch.ones(9, 5)
    del task_states["b"]["head.weight"]
    vectors = TaskVectors.open(base_state, task_states, exclude=("head.*",))
    assert vectors.names == ("stem.weight", "stem.bias", "fc.weight", "gain")


def test_exclude_pattern_that_matches_nothing(base_state, task_states):
    with pytest.raises(UnknownNameError, match=r"exclude pattern 'haed\.weight'\. Did you mean 'head\.weight'"):
        TaskVectors.open(base_state, task_states, exclude=("haed.weight",))


def test_nothing_left_to_merge(base_state, task_states):
    with pytest.raises(CheckpointError, match="no floating tensor is left"):
        TaskVectors.open(base_state, task_states, exclude=("*",))


def test_no_tasks(base_state, task_states):
    with pytest.raises(ValueError, match="tasks is empty"):
        TaskVectors.open(base_state, {})
    with pytest.raises(TypeError, match="tasks must map task names to checkpoints, not be a list"):
        TaskVectors.open(base_state, list(task_states.values()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["base", "task"])
def test_values_that_are_not_finite_are_located(value, where, base_state, task_states, tmp_path):
    (base_state if where == "base" else task_states["b"])["fc.weight"][1, 2] = value
    for name, state in {"base": base_state, **task_states}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    vectors = TaskVectors.open(
        tmp_path / "base.safetensors", {task: tmp_path / f"{task}.safetensors" for task in task_states}
    )
    vectors.stack("stem.weight")
    culprit = "base" if where == "base" else "b"
    with pytest.raises(CheckpointError, match=rf"/{culprit}\.safetensors: 1 NaN or infinite values in 'fc\.weight'"):
        vectors.stack("fc.weight")


def test_a_sum_that_overflows_is_no_error():
    vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.full((2,), 3e38)}})
    assert torch.equal(vectors.stack("w"), torch.full((1, 2), 3e38))


def test_task_that_equals_the_base_warns(base_state, task_states):
    with pytest.warns(UserWarning, match="task 'same' equals the base"):
        TaskVectors.open(base_state, {"same": dict(base_state), **task_states})


def test_task_that_differs_in_one_element_does_not_warn(base_state):
    tuned = {name: tensor.clone() for name, tensor in base_state.items()}
    tuned["stem.weight"][2, 3] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TaskVectors.open(base_state, {"a": tuned})


def test_opening_does_not_read_the_large_tensors(counting_checkpoint, base_state, task_states):
    base, base_reads = counting_checkpoint(base_state)
    task, reads = counting_checkpoint(task_states["a"])
    TaskVectors.open(base, {"a": task})
    assert set(base_reads) == set(reads) == {"gain"}  # the smallest tells that the task is not the base


def test_unknown_tensor_or_task_suggests_the_nearest(vectors):
    with pytest.raises(UnknownNameError, match=r"Did you mean 'fc\.weight'"):
        vectors.stack("fc.wieght")
    with pytest.raises(UnknownNameError, match="unknown task"):
        vectors.expert("z", "fc.weight")


# Prefixes and classifiers


def test_prefix_is_found_by_the_bases_names(base_state, task_states):
    wrapped = {f"model.{name}": tensor for name, tensor in task_states["a"].items()}
    vectors = TaskVectors.open(base_state, {"a": wrapped})
    assert torch.equal(vectors.expert("a", "gain"), task_states["a"]["gain"])


def test_given_prefix_is_stripped_where_there_is_one(base_state, task_states):
    wrapped = {f"student.{name}": tensor for name, tensor in task_states["a"].items()}
    wrapped |= {f"teacher.{name}": tensor for name, tensor in task_states["b"].items()}
    with pytest.raises(CheckpointError, match="several prefixes"):
        TaskVectors.open(base_state, {"a": wrapped})
    vectors = TaskVectors.open(base_state, {"a": wrapped, "b": task_states["b"]}, prefix="student.")
    assert torch.equal(vectors.expert("a", "gain"), task_states["a"]["gain"])


def test_prefix_of_the_base_is_found_by_the_model():
    model = nn.Linear(2, 2)
    wrapped = {f"net.{name}": tensor + 1 for name, tensor in model.state_dict().items()}
    assert TaskVectors.open(wrapped, {"a": model}, model=model).names == ("weight", "bias")


def test_timm_classifier_of_another_shape_becomes_the_tasks_own(make_vit, fine_tuned):
    base = make_vit(num_classes=10)
    experts = {"a": make_vit(num_classes=3), "b": fine_tuned(base.state_dict(), 1)}
    with pytest.raises(CheckpointError, match=r"'head\.(bias|weight)' has shape"):
        TaskVectors.open(base, experts)
    vectors = TaskVectors.open(base, experts, model=base)
    assert vectors.classifiers == ("head",)
    assert not [name for name in vectors.names if name.startswith("head.")]
    for task, classes in (("a", 3), ("b", 10)):
        state = vectors.classifier_state(task)
        assert state["head.weight"].shape == (classes, 48)
        assert state.keys() == {"head.weight", "head.bias"}


def test_an_excluded_classifier_is_the_bases_alone(make_vit):
    base = make_vit(num_classes=10)
    vectors = TaskVectors.open(base, {"a": make_vit(num_classes=0, seed=1)}, model=base, exclude=("head.*",))
    assert vectors.classifiers == ()
    assert "head.weight" not in vectors.names


def test_timm_classifier_of_one_shape_is_merged(make_vit, fine_tuned):
    base = make_vit(num_classes=10)
    vectors = TaskVectors.open(base, {"a": fine_tuned(base.state_dict(), 1)}, model=base)
    assert "head.weight" in vectors.names
    assert vectors.classifiers == ()
    assert vectors.classifier_state("a") == {}


def test_one_task_more(vectors, task_states):
    extended = vectors.with_task("d", task_states["b"] | {"more.weight": torch.ones(1)})
    assert extended.tasks == ("a", "b", "c", "d")
    assert vectors.tasks == ("a", "b", "c")
    assert extended.names == vectors.names
    assert torch.equal(extended.stack("fc.weight")[3], vectors.stack("fc.weight")[1])


def test_one_task_more_lacks_only_what_is_excluded(base_state, task_states):
    vectors = TaskVectors.open(base_state, {"a": task_states["a"]}, exclude=("head.*",))
    without_head = {name: tensor for name, tensor in task_states["b"].items() if not name.startswith("head.")}
    assert vectors.with_task("b", without_head).tasks == ("a", "b")


def test_one_task_more_has_to_fit(vectors, task_states):
    with pytest.raises(ValueError, match="task 'a' is there already"):
        vectors.with_task("a", task_states["a"])
    with pytest.raises(CheckpointError, match="task 'd' .* misses tensors that the base has: gain, head.weight"):
        vectors.with_task("d", {name: task_states["a"][name] for name in ("stem.weight", "stem.bias", "fc.weight")})
    with pytest.raises(CheckpointError, match="'gain' has shape"):
        vectors.with_task("d", task_states["a"] | {"gain": torch.ones(2)})


def test_loaded_task_vectors_are_the_same_and_read_nothing_more(counting_checkpoint, base_state, task_states):
    base, reads = counting_checkpoint(base_state)
    vectors = TaskVectors.open(base, task_states)
    loaded = vectors.load()
    reads.clear()
    for name in vectors.names:
        assert torch.equal(
            loaded.stack(name), torch.stack([state[name] - base_state[name] for state in task_states.values()])
        )
        assert torch.equal(loaded.base(name), base_state[name])
        assert torch.equal(loaded.expert("b", name), task_states["b"][name])
    assert not reads


def test_a_loaded_task_vector_stays_exact(base_state, tmp_path):
    tau = {"gain": torch.tensor(1e-9)}
    save_file(tau, tmp_path / "tau.safetensors", {"lwptv_kind": "task_vector"})
    vectors = TaskVectors.open(base_state, {"a": tmp_path / "tau.safetensors"}).load()
    assert vectors.stack("gain").item() == pytest.approx(1e-9)
    assert not vectors.stack("fc.weight").any()
    assert torch.equal(vectors.expert("a", "fc.weight"), base_state["fc.weight"])

import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, TaskVectors, open_checkpoint
from lwptv_lightning.checkpoints import fingerprint


def write_task_vector(folder, base, tau, **metadata):
    folder.mkdir(exist_ok=True)
    about = {"lwptv_kind": "task_vector", "lwptv_task": "a", "lwptv_base_fingerprint": fingerprint(base)} | metadata
    save_file(tau, folder / "task_vector.safetensors", metadata=about)
    return folder


@pytest.fixture
def tau(base_state):
    return {name: torch.full_like(tensor, 1e-9) for name, tensor in base_state.items() if name != "fc.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("as_file", [True, False])
def test_a_task_vector_is_used_as_it_is(base_state, task_states, as_file, dtype, tmp_path):
    tau = {name: (task_states["a"][name] - tensor).to(dtype) for name, tensor in base_state.items()}
    del tau["fc.weight"]  # it did not change
    folder = write_task_vector(tmp_path / "a", open_checkpoint(base_state), tau)
    source = folder / "task_vector.safetensors" if as_file else folder
    vectors = TaskVectors.open(base_state, {"a": source, "b": task_states["b"]})
    assert vectors.names == tuple(base_state)
    for name, difference in tau.items():
        assert torch.equal(vectors.stack(name)[0], difference.float())
        assert torch.equal(vectors.expert("a", name), base_state[name] + difference.float())
    assert not vectors.stack("fc.weight")[0].any()
    assert torch.equal(vectors.expert("a", "fc.weight"), base_state["fc.weight"])


def test_differences_below_the_bases_precision_survive(base_state, tau, tmp_path):
    folder = write_task_vector(tmp_path / "a", open_checkpoint(base_state), tau)
    vectors = TaskVectors.open(base_state, {"a": folder})
    assert torch.equal(vectors.stack("stem.weight")[0], tau["stem.weight"])


def test_another_base_is_refused(base_state, task_states, tau, tmp_path):
    folder = write_task_vector(tmp_path / "a", open_checkpoint(task_states["b"]), tau)
    with pytest.raises(CheckpointError, match=r"from another base: expected the one with fingerprint \w{12}, .* has"):
        TaskVectors.open(base_state, {"a": folder})


def test_without_a_fingerprint_any_base_of_these_names_fits(base_state, tau, tmp_path):
    save_file(tau, tmp_path / "a.safetensors", metadata={"lwptv_kind": "task_vector"})
    assert TaskVectors.open(base_state, {"a": tmp_path / "a.safetensors"}).stack("gain").item() == pytest.approx(1e-9)


def test_names_and_shapes_that_the_base_has_not(base_state, tmp_path):
    base = open_checkpoint(base_state)
    folder = write_task_vector(tmp_path / "a", base, {"fc.wieght": torch.ones(5, 3)})
    with pytest.raises(CheckpointError, match=r"no tensor fc\.wieght\. Did you mean 'fc\.weight'"):
        TaskVectors.open(base_state, {"a": folder})
    write_task_vector(tmp_path / "a", base, {"fc.weight": torch.ones(3, 5)})
    with pytest.raises(CheckpointError, match=r"difference of 'fc\.weight' has shape \(3, 5\), expected \(5, 3\)"):
        TaskVectors.open(base_state, {"a": folder})


def test_a_prefixed_base_and_a_converted_one(make_vit, tmp_path):
    vit = make_vit()
    wrapped = {f"model.{name}": tensor for name, tensor in vit.state_dict().items()}
    tau = {"norm.weight": torch.full((48,), 0.5)}
    folder = write_task_vector(tmp_path / "a", open_checkpoint(vit), tau)
    vectors = TaskVectors.open(wrapped, {"a": folder}, model=vit)
    assert torch.equal(vectors.stack("norm.weight")[0], tau["norm.weight"])


def test_a_base_is_fingerprinted_once_for_all_its_task_vectors(counting_checkpoint, base_state, tau, tmp_path):
    base, reads = counting_checkpoint(base_state)
    sources = {task: write_task_vector(tmp_path / task, open_checkpoint(base_state), tau) for task in "abc"}
    TaskVectors.open(base, sources)
    assert reads["fc.weight"] == 1


def test_differences_of_counters_and_masks(tmp_path):
    base = {"w": torch.randn(8, 8), "bn.num_batches_tracked": torch.tensor(3), "mask": torch.tensor([True, False])}
    tau = {"w": 0.01 * base["w"].flip(0), "bn.num_batches_tracked": torch.tensor(2), "mask": torch.tensor([0, 1])}
    vectors = TaskVectors.open(base, {"a": write_task_vector(tmp_path / "a", open_checkpoint(base), tau)})
    assert vectors.copied == ("bn.num_batches_tracked", "mask")
    assert torch.equal(vectors.expert("a", "bn.num_batches_tracked"), torch.tensor(5))
    assert torch.equal(vectors.expert("a", "mask"), torch.tensor([True, True]))
    tau["bn.num_batches_tracked"] = torch.tensor(2.0)
    with pytest.raises(CheckpointError, match="'bn.num_batches_tracked' is torch.float32, expected torch.int64"):
        TaskVectors.open(base, {"a": write_task_vector(tmp_path / "a", open_checkpoint(base), tau)})

import pytest
import torch
from _helpers.library_folders import make_transformers, save_base
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, TaskVectors, open_checkpoint
from lwptv_lightning.checkpoints import fingerprint
from lwptv_lightning.task_vectors import align


def test_failures_are_kept_where_they_are_not_raised(base_state, task_states, tmp_path):
    factors = {"fc.lora_A.weight": torch.ones(1, 3), "fc.lora_B.weight": torch.ones(5, 1)}
    sources = {"a": task_states["a"], "absent": tmp_path / "absent.pt", "adapter": factors}
    found = align(base_state, sources, strict=False)
    assert list(found.experts) == ["a"]
    assert list(found.opened) == ["a", "adapter"]
    assert [type(error) for error in found.failures.values()] == [FileNotFoundError, CheckpointError]
    with pytest.raises(FileNotFoundError):
        align(base_state, sources)


def test_differing_classifiers_are_ignored(make_vit):
    base = make_vit(num_classes=10)
    found = align(base, {"a": make_vit(num_classes=3)}, model=base, exclude=["norm.*"])
    assert found.classifiers == ("head",)
    assert found.ignored == ("norm.*", "head.*")
    assert not {"norm.weight", "head.weight"} & set(found.compare("a").matched)
    assert not found.compare("a").reshaped


def test_a_base_of_a_compiled_module_takes_one_task_more():
    model = torch.compile(torch.nn.Linear(2, 2))
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    vectors = TaskVectors.open(model, {"a": state}, model=model).with_task("b", state)
    assert vectors.names == ("weight", "bias")
    torch.testing.assert_close(vectors.stack("bias"), torch.ones(2, 2))


def test_fingerprints_of_base_and_tasks(vectors, base_state, task_states):
    base, tasks = vectors.fingerprints()
    assert base == fingerprint(open_checkpoint(base_state))
    assert tasks == {task: fingerprint(open_checkpoint(state)) for task, state in task_states.items()}


@pytest.mark.parametrize("renamed", ["base", "a"])
def test_files_of_two_versions_of_transformers_go_together_without_a_model(renamed, tmp_path):
    models = {name: make_transformers("vit") for name in ("base", "a")}
    for name, model in models.items():
        save_base(model, tmp_path / name)
    save_file(models[renamed].state_dict(), tmp_path / renamed / "model.safetensors")
    found = align(tmp_path / "base", {"a": tmp_path / "a"})
    assert not found.compare("a").missing
    assert not found.compare("a").extra
    assert found.base.names == open_checkpoint(tmp_path / "base").names
    both = align(models["base"], {"a": models["a"]})
    own = sorted(both.experts["a"].read(name).sum().item() for name in both.base.names)
    assert sorted(found.experts["a"].read(name).sum().item() for name in found.base.names) == own

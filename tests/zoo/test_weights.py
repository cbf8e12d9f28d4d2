"""The shipped weights load strictly, keep to their budgets, and show what the zoo exists to show."""

import functools
import statistics

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import fx

from lwptv_lightning.zoo import ID_SETS, OOD_SETS, base_path, create_model, dataset, expert_paths, heads
from lwptv_lightning.zoo.domains import set_alphabet
from lwptv_lightning.zoo.glyphs import characters

SAMPLES = 300  # one standard error is below 3 points per set, 1.3 over five sets


@functools.lru_cache
def accuracies(path):
    """Accuracy in percent of one checkpoint on every set."""
    model = create_model().eval()
    model.load_state_dict(load_file(path), strict=True)
    head_of = heads()
    result = {}
    with torch.inference_mode():
        for name in ID_SETS + OOD_SETS:
            data = dataset(name, "test", SAMPLES)
            correct = head_of[name](model(data.images)).argmax(1) == data.labels
            result[name] = 100 * correct.float().mean().item()
    return result


def ood_average(path):
    return statistics.mean(accuracies(path)[name] for name in OOD_SETS)


def test_model_is_within_its_budget():
    model = create_model()
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_500_000
    assert not list(model.buffers())
    assert sum(bool(list(module.parameters(recurse=False))) for module in model.modules()) >= 20


def test_model_can_be_traced():
    tracer = fx.Tracer(autowrap_functions=tuple(timm.layers.get_notrace_functions()))
    model = create_model().eval()
    traced = fx.GraphModule(model, tracer.trace(model))
    images = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(traced(images), model(images))


def test_files_are_within_their_budget():
    assert sum(file.stat().st_size for file in base_path().parent.iterdir()) < 15e6


def test_all_checkpoints_have_the_tensors_of_the_base_in_float16():
    assert tuple(expert_paths()) == ID_SETS
    base = load_file(base_path())
    assert set(base) == set(create_model().state_dict())
    for path in expert_paths().values():
        expert = load_file(path)
        assert {name: tensor.shape for name, tensor in expert.items()} == {n: t.shape for n, t in base.items()}
        assert all(tensor.dtype == torch.float16 and tensor.isfinite().all() for tensor in expert.values())
        assert all(not torch.equal(tensor, base[name]) for name, tensor in expert.items())


@pytest.mark.parametrize("name", ID_SETS + OOD_SETS)
def test_heads_are_frozen_and_have_one_logit_per_class(name):
    head = heads()[name]
    assert head(torch.randn(3, 192)).shape == (3, len(characters(set_alphabet(name))))
    assert not any(parameter.requires_grad for parameter in head.parameters())
    assert tuple(heads()) == ID_SETS + OOD_SETS


def test_base_works_out_of_domain():
    assert ood_average(base_path()) >= 75


@pytest.mark.parametrize("task", ID_SETS)
def test_expert_beats_the_base_on_its_own_task(task):
    assert accuracies(expert_paths()[task])[task] - accuracies(base_path())[task] >= 15


def test_experts_lose_out_of_domain():
    assert statistics.mean(map(ood_average, expert_paths().values())) <= ood_average(base_path()) - 5


def test_missing_file_is_named(tmp_path):
    for read in (base_path, expert_paths, heads):
        with pytest.raises(FileNotFoundError, match="lwptv zoo build"):
            read(tmp_path)

import pytest
import torch

from lwptv_lightning.evaluation import count_samples, each_sample, fingerprints, take_samples, tensors_of

BATCH = {"ids": torch.arange(6).reshape(3, 2), "scale": torch.tensor(2.0), "pair": (torch.ones(3, 4), ["a", "b", "c"])}


def test_samples_of_nested_inputs():
    assert count_samples(BATCH) == 3
    assert [tuple(tensor.shape) for tensor in tensors_of(BATCH)] == [(3, 2), (), (3, 4)]
    part = take_samples(BATCH, 1, 2)
    assert part["ids"].tolist() == [[2, 3]]
    assert part["scale"] == 2
    assert part["pair"][0].shape == (1, 4)
    assert [sample["ids"].tolist() for sample in each_sample(BATCH)] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    with pytest.raises(ValueError, match="inputs of type str hold no tensor of samples"):
        count_samples("text")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_a_fingerprint_is_of_the_sample_alone(dtype):
    torch.manual_seed(0)
    inputs, targets = (3 * torch.randn(40, 3, 5)).to(dtype), torch.arange(40)
    prints = fingerprints([inputs, targets])
    order = torch.randperm(40)
    assert len(set(prints.tolist())) == 40
    assert torch.equal(fingerprints([inputs[order], targets[order]]), prints[order])
    assert torch.equal(fingerprints([inputs[7:8], targets[7:8]]), prints[7:8])


def test_a_fingerprint_shows_every_change():
    inputs = torch.randn(2, 3, 4)
    changed = inputs.clone()
    changed[1, 2, 3] += 1e-6
    swapped = inputs.flip(2)
    first, second = fingerprints([inputs, torch.tensor([0, 1])]).tolist()
    assert fingerprints([changed, torch.tensor([0, 1])])[0] == first
    assert fingerprints([changed, torch.tensor([0, 1])])[1] != second
    assert fingerprints([inputs, torch.tensor([0, 2])])[1] != second
    assert fingerprints([swapped, torch.tensor([0, 1])])[0] != first
    assert torch.equal(fingerprints([torch.full((2, 2), torch.nan)]), fingerprints([torch.full((2, 2), torch.nan)]))

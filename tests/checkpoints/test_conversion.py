import pickle

import pytest
import torch

from lwptv_lightning.checkpoints import CheckpointError, convert


def twist(state):
    first, second = state["w"].chunk(2)
    resized = torch.nn.functional.interpolate(state["grid"][None, None], size=(4, 4), mode="bilinear")
    return {
        "joined": torch.cat([second.T, first.permute(1, 0)]),
        "grid": resized[0, 0],
        "zeros": torch.zeros(3),
        "meta": "not a tensor",
    }


STATE = {"w": torch.arange(8.0).reshape(4, 2), "grid": torch.arange(4.0).reshape(2, 2), "unused": torch.ones(9)}


def test_a_conversion_reads_nothing_but_what_a_result_needs(counting_checkpoint):
    checkpoint, reads = counting_checkpoint(STATE)
    converted = convert(checkpoint, twist)
    assert not reads
    assert torch.equal(converted.read("joined"), twist(STATE)["joined"])
    assert set(reads) == {"w"}


def test_results_equal_the_functions_own_also_after_pickling(counting_checkpoint):
    expected = {name: value for name, value in twist(STATE).items() if name != "meta"}
    converted = pickle.loads(pickle.dumps(convert(counting_checkpoint(STATE)[0], twist)))
    assert set(converted.names) == set(expected)
    for name, tensor in expected.items():
        assert converted.headers[name].shape == tuple(tensor.shape)
        assert torch.equal(converted.read(name), tensor)


@pytest.mark.parametrize("write", [lambda w: w.mul_(2), lambda w: w.__setitem__(0, 1)])
def test_writing_into_a_stored_tensor_is_refused(write, counting_checkpoint):
    with pytest.raises(CheckpointError, match="may not write into a tensor"):
        convert(counting_checkpoint(STATE)[0], lambda state: {"w": write(state["w"])})

import os

import pytest
import torch
from _helpers.states import assert_same_bits
from safetensors.torch import load_file, save_file
from torch import nn

from lwptv_lightning import CheckpointError, merge
from lwptv_lightning.merging import read_data_statistics, write_data_statistics

DATA = {
    "a": {"net.0.weight": torch.arange(6.0).reshape(2, 3), "net.0.bias": torch.tensor([-0.0, 1e-30])},
    "with/any.character: ü": {"net.0.weight": torch.ones(2, 3, dtype=torch.float64)},
    "nothing": {},
    "1": {"1.weight": torch.tensor(3.0)},
}


def test_what_is_written_is_read_with_its_tasks_in_their_order(tmp_path):
    path = write_data_statistics(DATA, tmp_path / "new" / "data.safetensors")
    assert path == tmp_path / "new" / "data.safetensors"
    read = read_data_statistics(path)
    assert list(read) == list(DATA)
    for task, tensors in DATA.items():
        assert_same_bits(read[task], tensors)


def test_the_file_can_be_read_by_the_formats_own_library(tmp_path):
    path = write_data_statistics(DATA, tmp_path / "data.safetensors")
    assert sum(tensor.numel() for tensor in load_file(path).values()) == 6 + 2 + 6 + 1


def test_tensors_that_share_memory_are_written(tmp_path):
    weight = torch.arange(4.0).reshape(2, 2)
    path = write_data_statistics({"a": {"w": weight, "tied": weight, "turned": weight.T}}, tmp_path / "d.safetensors")
    read = read_data_statistics(path)["a"]
    assert torch.equal(read["tied"], weight)
    assert torch.equal(read["turned"], weight.T)


def test_another_file_is_refused(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a file of data statistics"):
        read_data_statistics(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        read_data_statistics(tmp_path / "absent.safetensors")


def test_a_tensor_is_read_when_it_is_asked_for_and_only_from_the_same_file(tmp_path):
    path = write_data_statistics(DATA, tmp_path / "data.safetensors")
    read = read_data_statistics(path)["a"]
    assert "net.0.weight" in read
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"data\.safetensors: changed while it was in use: it was written to"):
        read["net.0.weight"]


def test_a_file_that_is_no_regular_one_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "data.safetensors")
    with pytest.raises(CheckpointError, match="expected a regular file, not a FIFO"):
        read_data_statistics(tmp_path / "data.safetensors")


UNREADABLE = {
    "on the meta device": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor, tensor], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", ["fisher", "regmean"])
@pytest.mark.parametrize("words", UNREADABLE)
def test_data_without_readable_values_are_named(words, rule, vectors):
    data = {task: {"fc.weight": UNREADABLE[words](torch.ones(3, 3))} for task in vectors.tasks}
    with pytest.raises(CheckpointError, match=rf"data \(or statistics\) of task 'a': .*{words}.*: fc\.weight\."):
        merge(vectors, rule, data=data)


def test_data_that_require_grad_leave_no_graph(vectors):
    shapes = {name: vectors.headers[name].shape for name in vectors.names}
    data = {task: {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()} for task in "abc"}
    assert not any(tensor.requires_grad for tensor in merge(vectors, "fisher", data=data).values())


def test_a_gram_matrix_that_is_none_is_refused(vectors):
    wrongs = {r"shape \(3,\) for 'fc\.weight', expected \(3, 3\)": torch.ones(3), "NaN": torch.full((3, 3), torch.nan)}
    for words, wrong in wrongs.items():
        with pytest.raises(ValueError, match=words):
            merge(vectors, "regmean", data={task: {"fc.weight": wrong} for task in vectors.tasks})

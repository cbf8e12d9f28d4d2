import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning import open_checkpoint
from lwptv_lightning.checkpoints import fingerprint

STATE = {"b": torch.ones(2, 3), "a": torch.tensor(2.0), "half": torch.ones(4).bfloat16(), "empty": torch.zeros(0)}


def of(state):
    return fingerprint(open_checkpoint(state))


def test_format_order_and_integers_do_not_count(tmp_path):
    torch.save({"state_dict": STATE}, tmp_path / "m.pt")
    save_file(STATE, tmp_path / "m.safetensors")
    reordered = dict(reversed(STATE.items())) | {"steps": torch.tensor(3)}
    assert len({of(STATE), of(reordered), of(tmp_path / "m.pt"), of(tmp_path / "m.safetensors")}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"b": torch.ones(3, 2)},
        {"b": torch.ones(2, 3).half()},
        {"a": torch.nextafter(torch.tensor(2.0), torch.tensor(3.0))},
        {"more": torch.zeros(1)},
    ],
    ids=["shape", "dtype", "one bit", "name"],
)
def test_any_change_of_a_floating_tensor_counts(change):
    assert of(STATE | change) != of(STATE)


def test_a_transposed_view_counts_as_what_it_holds():
    matrix = torch.arange(6.0).reshape(2, 3)
    assert of({"w": matrix.T}) == of({"w": matrix.T.contiguous()})

import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning.cli import main
from lwptv_lightning.inspection import diff


def test_layers_that_differ(base_state):
    other = base_state | {"fc.weight": base_state["fc.weight"] * 1.5, "stem.bias": torch.ones(4)}
    del other["head.weight"]
    found = {layer.layer: layer for layer in diff(base_state, other | {"tail.weight": torch.ones(2)})}
    assert list(found) == ["stem", "fc", "head", "gain", "tail"]
    assert (found["fc"].changed, found["fc"].norm) == (1, pytest.approx(0.5))
    assert found["fc"].largest == pytest.approx(float(base_state["fc.weight"].abs().max() / 2))
    assert (found["stem"].tensors, found["stem"].changed, found["stem"].norm) == (2, 1, 0)
    assert found["stem"].note == "stem.bias: (3,) and (4,)"
    assert found["head"].note == "only the first has head.weight"
    assert found["tail"].note == "only the second has tail.weight"
    assert found["gain"].changed == 0


def test_the_command_lists_what_differs_and_counts_the_rest(base_state, tmp_path, capsys):
    save_file(base_state, tmp_path / "a.safetensors")
    save_file(base_state | {"gain": base_state["gain"] + 1}, tmp_path / "b.safetensors")
    main(["diff", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--granularity", "tensor"])
    output = capsys.readouterr().out
    assert "gain" in output
    assert "fc.weight" not in output
    assert "4 of 5 layers are equal." in output


def test_other_names_are_brought_together(base_state):
    wrapped = {f"net.{name}": tensor for name, tensor in base_state.items()}
    assert not any(layer.changed for layer in diff(base_state, wrapped))


def test_only_weights_are_measured(base_state):
    state = base_state | {"fc.SCB": torch.ones(4), "stem.steps": torch.tensor(1 << 60), "gain": torch.ones(3) + 1j}
    state |= {"fc.weight": torch.ones(4, 4).to(torch.int8)}
    other = {"fc.weight": 2 * state["fc.weight"], "stem.steps": torch.tensor((1 << 60) + 1), "gain": torch.ones(3) + 4j}
    found = {layer.layer: layer for layer in diff(state, state | other)}
    assert (found["fc"].changed, found["fc"].norm) == (1, 0)
    assert found["fc"].note == "fc.weight: quantized by bitsandbytes, 8 bits, whose numbers are not compared"
    assert (found["stem"].changed, found["stem"].norm) == (1, 0)
    assert (found["gain"].changed, found["gain"].norm) == (1, pytest.approx(3 / 2**0.5))
    (real,) = [layer for layer in diff(state, state | {"gain": torch.ones(3)}) if layer.layer == "gain"]
    assert real.note == "gain: torch.complex64 and torch.float32"

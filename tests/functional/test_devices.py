import pytest
import torch

from lwptv_lightning import Execution, Merge, MergeRecipe, collect_statistics, layers_from_names, merge
from lwptv_lightning.functional import device_of, require_usable


@pytest.mark.parametrize("given", ["cpu", torch.device("cpu"), "cuda:3", 0])
def test_devices_by_name_number_or_themselves(given):
    assert device_of("device", given) == torch.device(given)


@pytest.mark.parametrize("given", ["tpu", "", "cpu:x", "cuda:-1", -1, 10**30, "x" * 10**4, "\0", "\udc80"])
def test_what_is_no_device_is_a_value_error(given):
    with pytest.raises(ValueError, match="^device .{1,110} is none: ") as found:
        device_of("device", given)
    assert len(str(found.value)) < 700


@pytest.mark.parametrize("given", [None, 0.5, [], torch.zeros(1)])
def test_what_cannot_name_a_device_is_a_type_error(given):
    with pytest.raises(TypeError, match="device must be a device such as 'cpu' or 'cuda', not a "):
        device_of("device", given)


def test_the_cpu_is_usable_and_the_meta_device_is_not():
    require_usable("device", "cpu")
    with pytest.raises(ValueError, match="device 'meta' cannot be used: .* Here are cpu"):
        require_usable("device", "meta")


def test_whoever_computes_refuses_before_anything_is_read(vectors, monkeypatch):
    monkeypatch.setattr(type(vectors), "open_stack", lambda *_: pytest.fail("read"))
    layers = layers_from_names(vectors.names)
    for compute in (
        lambda: merge(vectors, "ties", device="meta"),
        lambda: Merge(vectors, MergeRecipe(ratio=0.5)).plan(Execution(device="meta")),
        lambda: collect_statistics(vectors, layers, "meta"),
        lambda: vectors.load("meta"),
    ):
        with pytest.raises(ValueError, match="device 'meta' cannot be used: "):
            compute()
    for compute in (
        lambda: merge(vectors, "ties", device="tpu"),
        lambda: Execution(device="tpu"),
        lambda: collect_statistics(vectors, layers, "tpu"),
        lambda: vectors.load("tpu"),
    ):
        with pytest.raises(ValueError, match="device 'tpu' is none: "):
            compute()


def test_a_name_in_the_message_is_text():
    with pytest.raises(ValueError, match=r"is none: .*\\x1b\[2J") as caught:
        Execution(device="\x1b[2J")
    assert "\x1b" not in str(caught.value)

import threading

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save_file

from lwptv_lightning import open_checkpoint
from lwptv_lightning.checkpoints import (
    Checkpoint,
    FunctionReader,
    TensorHeader,
    fingerprint,
    fingerprints,
    tensor_fingerprints,
)

STATE = {"b": torch.ones(2, 3), "a": torch.tensor(2.0), "half": torch.ones(4).bfloat16(), "empty": torch.zeros(0)}
OLD = "d4de8c2a58111b611b6a88b6620f754ee8602ab0817e37a65d8455223ef5f9d3"
OLD_TENSORS = {
    "b": "f9d6c0f48b859165c9db0a128bdba008",
    "a": "ff8211fb6ed40486cbfa2e067a8c3ac3",
    "half": "bf7589f8adaecfcb1bf0e2d13f97933e",
    "empty": "a0e3e514425b0bc1573ba585fc77a80f",
}
"""What earlier versions wrote of that state, by SHA-256."""


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


def test_a_strided_tensor_of_many_parts_counts_as_what_it_holds(counting_checkpoint):
    rows = torch.arange(3 * 5_000_000.0).reshape(3, -1)  # hashed a few columns at a time
    strided, _ = counting_checkpoint({"w": rows.T})
    assert not strided.read("w").is_contiguous()
    assert fingerprint(strided) == of({"w": rows.T.contiguous()})


def test_a_fingerprint_is_computed_once_for_each_checkpoint(counting_checkpoint):
    checkpoint, reads = counting_checkpoint({"w": torch.ones(2), "v": torch.zeros(3)})
    assert fingerprint(checkpoint) == fingerprint(checkpoint) == of({"w": torch.ones(2), "v": torch.zeros(3)})
    assert len(reads) == 2
    assert tensor_fingerprints(checkpoint).keys() == {"w", "v"}  # which the whole one is made of
    assert len(reads) == 2
    assert fingerprint(checkpoint.renamed({"w": "w"})) == of({"w": torch.ones(2)})


def test_fingerprints_of_several_are_those_of_each():
    states = {None: STATE, **{task: {**STATE, "a": torch.tensor(float(task))} for task in range(6)}}
    found = fingerprints({task: open_checkpoint(state) for task, state in states.items()})
    assert found == {task: of(state) for task, state in states.items()}
    assert len(set(found.values())) == 6  # a = 2 is the state itself


def test_a_fingerprint_says_its_algorithm_and_is_made_of_the_tensors_own():
    digest = blake3(b"torch.float32 [2, 3]\n" + STATE["b"].numpy().tobytes()).hexdigest()
    whole = blake3(f'[["b", "{digest}"]]'.encode()).hexdigest()
    checkpoint = open_checkpoint({"b": STATE["b"], "steps": torch.tensor(7)})
    assert tensor_fingerprints(checkpoint) == {"b": f"b3_{digest[:32]}"}
    assert fingerprint(checkpoint) == f"b3_{whole}"


def test_names_are_told_apart_from_what_stands_beside_them():
    one, other = torch.zeros(1), torch.ones(1)
    assert of({"a": one, "b": other}) != of({"a": other, "b": one})
    assert of({'a"], ["b': one}) != of({"a": one, "b": one})
    assert len({of({name: one}) for name in ("", "\n", "\udc80", "é")}) == 4


def test_what_is_compared_with_a_fingerprint_of_earlier_versions_is_made_like_it():
    checkpoint = open_checkpoint(STATE)
    assert (
        fingerprint(checkpoint, OLD) == fingerprint(checkpoint, "any other digits") == fingerprint(checkpoint, 7) == OLD
    )
    assert fingerprints({"x": checkpoint}, OLD) == {"x": OLD}
    assert tensor_fingerprints(checkpoint, OLD_TENSORS | {"absent": "0" * 32}) == OLD_TENSORS
    assert fingerprint(checkpoint, of({})) == fingerprint(checkpoint) == of(STATE)
    mixed = {"a": OLD_TENSORS["a"], "b": "b3_"}
    assert tensor_fingerprints(checkpoint, mixed) == {"a": OLD_TENSORS["a"], "b": tensor_fingerprints(checkpoint)["b"]}


def test_a_sha256_is_computed_once_for_each_checkpoint(counting_checkpoint):
    checkpoint, reads = counting_checkpoint(STATE)
    for _ in range(2):
        assert fingerprint(checkpoint, OLD) == OLD
        assert tensor_fingerprints(checkpoint, OLD_TENSORS) == OLD_TENSORS
    assert set(reads.values()) == {2}


@pytest.mark.parametrize("threads", [1, 3])
def test_tensors_are_read_here_and_dealt_to_threads(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name, size in {"_DEALT": 1 << 16, "_HELD": 1 << 17}.items():
        monkeypatch.setattr(f"lwptv_lightning.checkpoints.hashing.{name}", size)
    state = {f"{number}": torch.full((1 << 10 + number % 6,), float(number)) for number in range(40)}
    readers = set()

    def read(name):
        readers.add(threading.current_thread())
        return state[name]

    checkpoint = Checkpoint("m", TensorHeader.of_all(state), FunctionReader(read))
    expected = {name: f"b3_{blake3(_stored(tensor)).hexdigest()[:32]}" for name, tensor in state.items()}
    assert tensor_fingerprints(checkpoint) == expected
    assert readers == {threading.current_thread()}


def _stored(tensor):
    return f"{tensor.dtype} {list(tensor.shape)}\n".encode() + tensor.numpy().tobytes()


def test_an_error_of_a_reader_is_that_of_the_fingerprint():
    def read(name):
        raise OSError(name)

    headers = dict.fromkeys(("a", "b"), TensorHeader((1 << 15,), torch.float32))
    with pytest.raises(OSError, match="^a$"):
        fingerprint(Checkpoint("m", headers, FunctionReader(read)))

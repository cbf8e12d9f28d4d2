"""Archives that are not as torch.save writes them, and files of before torch 1.6."""

import os
import struct
import warnings
import zipfile

import pytest
import torch
from _helpers.torch_archives import call, mapping, name, storage, tensor, text, whole, write_archive

from lwptv_lightning import CheckpointError, open_checkpoint
from lwptv_lightning.checkpoints.torch_storage import read_torch_file
from lwptv_lightning.files import InputFile

STATE = whole(mapping(w=tensor()))
WORDS = {
    "compressed": "'data.pkl' is compressed",
    "twice": "the entry 'model/data/0' twice",
    "big-endian": "another byte order",
    "too short": "storage '0' has 3 torch.float32 where 4 torch.float32 are used",
    "too long": "storage '0' has 8 torch.float32 where 4",
    "of another kind": "storage '0' has 4 torch.float32 where 2 torch.float64",
    "absent": "KeyError",
    "something before": "does not begin as one does|ValueError|unpack|IndexError",
    "two archives": "something before the first entry",
    "encrypted": "is encrypted",
    "overlapping": "within another one|two different headers",
    "two headers": "two different headers",
    "beyond the end": "longer than the file|two different headers|within another",
    "cut off": "not a zip file",
}


def changed(path, change):
    raw = bytearray(path.read_bytes())
    path.write_bytes(change(raw) or raw)


def central(raw, entry):
    """Where the directory's header of an entry begins."""
    at = raw.rindex(entry)
    return raw.rindex(b"PK\1\2", 0, at)


def encrypt(raw):
    for header, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        raw[raw.index(header) + at] |= 1


def overlap(raw):
    raw[central(raw, b"data/0") + 42 :][:4] = struct.pack("<I", 0)
    at = central(raw, b"data/0") + 42
    raw[at : at + 4] = struct.pack("<I", 0)


def lengthen(raw):
    for header, sizes in ((raw.index(b"model/data/0") - 30, 18), (central(raw, b"model/data/0"), 20)):
        raw[header + sizes : header + sizes + 8] = struct.pack("<II", 5000, 5000)


@pytest.fixture
def make(tmp_path):
    path = tmp_path / "m.pt"

    def double():
        with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
            archive.writestr("model/data/0", bytes(16))

    def rewritten(change):
        return lambda: changed(write_archive(path, STATE), change)

    def swap(raw):
        at = raw.index(b"model/data/0")
        raw[at : at + 12] = b"model/data/1"

    of_another_kind = whole(
        mapping(
            w=tensor((2,), stored=storage(numel=4)),
            v=tensor((2,), stored=storage(numel=2, kind=("torch", "DoubleStorage"))),
        )
    )
    makers = {
        "compressed": lambda: write_archive(path, STATE, method=zipfile.ZIP_DEFLATED),
        "twice": lambda: (write_archive(path, STATE), double()),
        "big-endian": lambda: write_archive(path, STATE, byteorder="big"),
        "too short": lambda: write_archive(path, STATE, {"0": bytes(12)}),
        "too long": lambda: write_archive(path, STATE, {"0": bytes(32)}),
        "of another kind": lambda: write_archive(path, of_another_kind),
        "absent": lambda: write_archive(path, STATE, {"1": bytes(16)}),
        "something before": rewritten(lambda raw: b"#!/bin/sh\n" + raw),
        "two archives": rewritten(lambda raw: raw + raw),
        "encrypted": rewritten(encrypt),
        "overlapping": rewritten(overlap),
        "two headers": rewritten(swap),
        "beyond the end": rewritten(lengthen),
        "cut off": rewritten(lambda raw: raw[:-30]),
    }
    return lambda kind: (makers[kind](), path)[1]


@pytest.mark.parametrize("kind", WORDS)
def test_an_archive_that_is_not_as_torch_writes_it(kind, make):
    with pytest.raises(CheckpointError, match=WORDS[kind]):
        open_checkpoint(make(kind))


@pytest.mark.parametrize("more", [{}, {"byteorder": "little"}, {".data/serialization_id": "1"}])
def test_one_that_is(more, tmp_path):
    path = write_archive(tmp_path / "m.pt", STATE, **more)
    assert torch.equal(open_checkpoint(path).read("w"), torch.tensor([1.0, 2, 3, 4]))
    assert torch.equal(torch.load(path)["w"], torch.tensor([1.0, 2, 3, 4]))


def test_entries_that_are_not_needed_may_be_compressed(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(3)}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README", "x" * 100)
    assert open_checkpoint(path).read("w").tolist() == [1, 1, 1]


def test_small_weights_of_a_compressed_file_are_not_read_as_garbage(tmp_path):
    torch.save({"w": torch.full((8,), -1.126)}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as stored, zipfile.ZipFile(tmp_path / "z.pt", "w", 8) as deflated:
        for entry in stored.namelist():
            deflated.writestr(entry, stored.read(entry))
    assert torch.load(tmp_path / "z.pt")["w"][0] == -1.126
    with pytest.raises(CheckpointError, match=r"z\.pt: .*is compressed, and cannot be mapped"):
        open_checkpoint(tmp_path / "z.pt")


def test_an_archive_of_more_than_four_gigabytes_has_other_headers(tmp_path):
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, values in {"data.pkl": STATE, "data/0": struct.pack("<4f", 1, 2, 3, 4)}.items():
            with archive.open(f"model/{entry}", "w", force_zip64=True) as file:
                file.write(values)
    assert open_checkpoint(path).read("w").tolist() == [1, 2, 3, 4]


STATES = {
    "dtypes": {str(dtype): torch.ones(3).to(dtype) for dtype in (torch.float64, torch.bfloat16, torch.int8)},
    "new dtypes": {str(dtype): torch.ones(3).to(dtype) for dtype in (torch.float8_e4m3fn, torch.uint16)},
    "views": {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.arange(6.0)[2:4], "c": torch.ones(1).expand(3)},
    "shapes": {"a": torch.ones(()), "b": torch.ones(0, 3), "c": torch.ones(2, 1, 2)},
    "gradient": {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.ones(2, requires_grad=True)},
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("new_format", [True, False], ids=["archive", "sequence"])
def test_what_torch_wrote_is_read_as_it_was(state, new_format, tmp_path):
    path = tmp_path / "m.pt"
    torch.save(STATES[state], path, _use_new_zipfile_serialization=new_format)
    found = read_torch_file(InputFile.at(path))
    for key, tensor_ in STATES[state].items():
        assert found[key].dtype == tensor_.dtype
        assert found[key].stride() == tensor_.stride()
        assert torch.equal(found[key].float(), tensor_.float())


@pytest.mark.parametrize("new_format", [True, False], ids=["archive", "sequence"])
def test_weights_beside_a_quantized_tensor(new_format, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to take them out
        other = {kind: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, kind) for kind in (torch.qint8, torch.qint32)}
        content = {"state_dict": {"w": torch.ones(2)}, "other": list(other.values())}
        torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=new_format)
    assert open_checkpoint(tmp_path / "m.pt").read("w").tolist() == [1, 1]


@pytest.mark.parametrize("cut", [1, 4, 9, 30])
def test_a_sequence_that_is_cut_off(cut, tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    os.truncate(path, path.stat().st_size - cut)
    with pytest.raises(CheckpointError, match=r"m\.pt: not a readable checkpoint of torch\.save"):
        open_checkpoint(path)


@pytest.mark.parametrize("content", [call(name("os", "system"), text("true")), name("os", "system")])
def test_foreign_code_is_named(content, tmp_path):
    path = write_archive(tmp_path / "m.pt", whole(content))
    with pytest.raises(CheckpointError, match=r"holds pickled Python objects, .* the first is 'os\.system'"):
        open_checkpoint(path)

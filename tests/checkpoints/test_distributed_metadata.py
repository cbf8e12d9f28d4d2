"""What a `.metadata` says is taken as data, and refused where it cannot be so."""

import dataclasses
import os
import pickle
import time

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from lwptv_lightning import CheckpointError, open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Call:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.fixture
def folder(tmp_path):
    dcp.save({"model": {"w": torch.arange(6.0).reshape(2, 3)}, "step": 3}, checkpoint_id=tmp_path)
    return tmp_path


def rewrite(folder, change, protocol=None):
    about = pickle.loads((folder / ".metadata").read_bytes())
    changed = change(about)
    (folder / ".metadata").write_bytes(pickle.dumps(about if changed is None else changed, protocol))


def place(about):
    return about.storage_data[MetadataIndex("model.w", [0, 0])]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(protocol, folder):
    rewrite(folder, lambda about: None, protocol)
    assert open_checkpoint(folder).read("w").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_earlier_versions_wrote(folder):
    def earlier(about):
        for name in ("storage_meta", "version"):
            delattr(about, name)
        info = place(about)
        object.__delattr__(info, "transform_descriptors") if "transform_descriptors" in info.__dict__ else None

    rewrite(folder, earlier, 2)
    raw = (folder / ".metadata").read_bytes()
    home = b"torch.distributed._shard.sharded_tensor.metadata\n"
    for name in (b"TensorProperties", b"MEM_FORMAT_ENCODING"):
        raw = raw.replace(b"torch.distributed.checkpoint.metadata\n" + name, home + name)
        raw = raw.replace(b"torch.distributed.checkpoint.metadata\n_" + name, home + name)
    (folder / ".metadata").write_bytes(raw)
    assert b"sharded_tensor" in raw
    assert open_checkpoint(folder).read("w").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_state_that_was_stored_flat(folder):
    rewrite(folder, lambda about: setattr(about, "planner_data", None))
    assert open_checkpoint(folder).names == ("model.w",)


def set_of(about, **values):
    for name, value in values.items():
        setattr(place(about), name, value)


def twice(about):
    about.state_dict_metadata["model.w"].chunks.append(ChunkStorageMetadata(torch.Size([1, 0]), torch.Size([1, 3])))


def huge(about):
    size = torch.Size([1 << 30, 1 << 28])
    about.state_dict_metadata["model.w"].size = size
    about.state_dict_metadata["model.w"].chunks = [ChunkStorageMetadata(torch.Size([0, 0]), size)]


def grown(about):
    about.state_dict_metadata["model.w"].size = torch.Size([4, 3])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: set_of(about, relative_path="../x.distcp"), r"'\.\./x\.distcp' leads outside of this folder"),
        (lambda about: set_of(about, relative_path="/etc/passwd"), r"'/etc/passwd' leads outside of this folder"),
        (lambda about: set_of(about, relative_path="y.distcp"), r"files that \.metadata names are missing: y\.distcp"),
        (lambda about: set_of(about, relative_path=3), "a name that is none"),
        (lambda about: set_of(about, offset=10**6), r"__0_0\.distcp: cut off.*'model\.w' should stand in"),
        (lambda about: set_of(about, length=10**6), r"__0_0\.distcp: cut off.*'model\.w' should stand in"),
        (lambda about: set_of(about, length=3), r"__0_0\.distcp: cut off.*'model\.w' should stand in 3 bytes"),
        (lambda about: set_of(about, offset=-1), "a size of other than whole numbers"),
        (lambda about: set_of(about, offset=10**30), "a size of other than whole numbers"),
        (lambda about: set_of(about, transform_descriptors=["zstd"]), r"stored in another form, \['zstd'\]"),
        (lambda about: about.storage_data.clear(), r"where the piece of 'model\.w' at \(0, 0\) is stored"),
        (huge, r"__0_0\.distcp: cut off.*'model\.w' should stand in"),
        (grown, r"do not make up the whole of model\.w\."),
        (twice, r"(where the piece of 'model\.w' at \(1, 0\) is stored)"),
        (lambda about: about.state_dict_metadata.clear(), "holds no tensors of a model"),
        (lambda about: {"w": 1}, "it holds a dict where a Metadata is expected"),
        (lambda about: _StorageInfo("x", 0, 1), r"it holds a torch\.distributed\.\S+_StorageInfo where a Metadata"),
        (lambda about: about.planner_data.update({"model.w": ("step", "w"), "step": ("step",)}), None),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(change, words, folder):
    rewrite(folder, change)
    if words is None:
        assert open_checkpoint(folder).names == ("w",)
        return
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder)


def test_code_is_not_run_wherever_it_stands(folder, tmp_path):
    mark = tmp_path / "mark"
    call, whole = Call(os.mkdir, (str(mark),)), (folder / ".metadata").read_bytes()
    rewrite(folder, lambda about: setattr(about.storage_meta, "checkpoint_id", call))
    assert open_checkpoint(folder).names == ("w",)
    for change in (
        lambda about: call,
        lambda about: about.state_dict_metadata.update(x=call),
        lambda about: set_of(about, relative_path=call),
        lambda about: setattr(about.state_dict_metadata["model.w"].properties, "dtype", call),
        lambda about: setattr(about.state_dict_metadata["model.w"], "size", call),
    ):
        (folder / ".metadata").write_bytes(whole)
        rewrite(folder, change)
        with pytest.raises(CheckpointError, match=r"\.metadata: not a readable \.metadata of torch\.distributed"):
            open_checkpoint(folder)
    assert not mark.exists()


@pytest.mark.parametrize("raw", [b"", b"\x80\x04", b"nothing", b"\x80\x02}q\x00.", b"\x80\x04\x8c\x01a\x8c\x01b\x93."])
def test_damage_is_an_error_that_names_the_file(raw, folder):
    (folder / ".metadata").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"\.metadata: not a readable \.metadata of torch\.distributed"):
        open_checkpoint(folder)


def test_every_cut_and_many_flips_are_told_or_harmless(folder):
    whole = (folder / ".metadata").read_bytes()
    begin = time.perf_counter()
    for at in range(0, len(whole), 11):
        for raw in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]):
            (folder / ".metadata").write_bytes(raw)
            try:
                found = open_checkpoint(folder)
                [found.read(name) for name in found.names]
            except CheckpointError:
                pass
    assert time.perf_counter() - begin < 60


def test_names_that_lie_deep_in_one_another(folder):
    def deepen(about):
        about.planner_data["model.w"] = ("model", *map(str, range(5000)), "w")

    rewrite(folder, deepen)
    (name,) = open_checkpoint(folder).names
    assert name.endswith(".4999.w")


def test_tensors_in_one_another_are_refused(folder):
    def double(about):
        for where in (about.state_dict_metadata, about.planner_data):
            where["model.w.x"] = where["model.w"]
        about.storage_data[dataclasses.replace(MetadataIndex("model.w.x", [0, 0]))] = place(about)
        about.planner_data["model.w.x"] = ("model", "w", "x")

    rewrite(folder, double)
    with pytest.raises(CheckpointError, match=r"'model\.w\.x' stands where another tensor does"):
        open_checkpoint(folder)

"""Small files that would grow: each is read or refused in little time and memory."""

import contextlib
import json
import pickle
import resource
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from _helpers.forked import forked
from _helpers.torch_archives import call, many, mapping, name, number, tensor, text, whole, write_archive
from safetensors.torch import save_file

from lwptv_lightning import MergeRecipe, TaskVectors, open_checkpoint
from lwptv_lightning.inspection import check

SECONDS, MEMORY = 4.0, 1 << 29
DEEP = b"[" * 200_000
GET, PUT = pickle.BINGET + b"\0", pickle.BINPUT + b"\0"
BASE = {"fc.weight": torch.ones(4, 4), "b": torch.ones(3)}
ORDERED, SET, SIZE = name("collections", "OrderedDict"), name("builtins", "set"), name("torch", "Size")
MADE = ORDERED + pickle.EMPTY_TUPLE + pickle.REDUCE


def archived(*instructions):
    return lambda folder: write_archive(folder / "m.pt", whole(*instructions))


def expanded(new_format):
    def write(folder):
        torch.save({"w": torch.ones(1).expand(2**31)}, folder / "m.pt", _use_new_zipfile_serialization=new_format)
        return folder / "m.pt"

    return write


def negated(folder):
    torch.save({"w": torch._neg_view(torch.ones(1).expand(2**31))}, folder / "m.pt")
    return folder / "m.pt"


def deflated(folder):
    return write_archive(folder / "m.pt", whole(mapping(w=tensor())), {"0": bytes(1 << 28)}, zipfile.ZIP_DEFLATED)


def one_header(entries, data=b""):
    def write(folder):
        raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
        (folder / "m.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + data)
        return folder / "m.safetensors"

    return write


def named(*names):
    return one_header({key: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for key in names})


def with_metadata(key, value):
    def write(folder):
        metadata = {"lwptv_kind": "task_vector", key: value}
        save_file({"fc.weight": torch.ones(4, 4)}, folder / "m.safetensors", metadata)
        return folder / "m.safetensors"

    return write


def file_of(name_, content):
    def write(folder):
        (folder / name_).write_bytes(content)
        return folder / name_

    return write


def adapter(config, rows=4, name_="fc"):
    def write(folder):
        factors = {"A": torch.ones(1, rows), "B": torch.ones(rows, 1)}
        weights = {f"base_model.model.{name_}.lora_{factor}.weight": each for factor, each in factors.items()}
        save_file(weights, folder / "adapter_model.safetensors")
        raw = config if isinstance(config, bytes) else json.dumps({"peft_type": "LORA", **config}).encode()
        (folder / "adapter_config.json").write_bytes(raw)
        return folder

    return write


def with_configuration(file, content):
    def write(folder):
        save_file({"fc.weight": torch.ones(4, 4), "b": torch.ones(3)}, folder / "model.safetensors")
        (folder / file).write_bytes(content)
        return folder

    return write


LONG = pickle.MARK + pickle.NONE * 40_000 + pickle.TUPLE + PUT
NEW, APPENDS = pickle.NEWOBJ, pickle.APPENDS
PAIRS = pickle.EMPTY_LIST + b"".join(many(text(f"{n}"), pickle.NONE) + pickle.APPEND for n in range(10_000)) + PUT
NESTED = number(1) + PUT + (GET + GET + pickle.TUPLE2 + PUT) * 10_000
COLLIDING = b"".join(number(n * (2**61 - 1)) + pickle.NONE for n in range(20_000))
SHAPE = [2**62, 2**62, 0]
BOMBS = {
    "a tensor of stride 0": expanded(True),
    "one of before torch 1.6": expanded(False),
    "one that is negated lazily": negated,
    "compressed zeros": deflated,
    "a large buffer": archived(call(name("builtins", "bytearray"), number(10**11))),
    "a large storage": archived(call(name("torch", "FloatStorage"), number(10**11))),
    "a large tensor": archived(name("torch", "Tensor"), many(number(10**6), number(10**6)), pickle.NEWOBJ),
    "a large quantised tensor": archived(call(name("torch._utils", "_rebuild_qtensor"), number(10**12))),
    "a far place in the memo": archived(pickle.NONE, pickle.LONG_BINPUT, b"\xff\xff\xff\x7f"),
    "entries copied again and again": archived(PAIRS, (ORDERED + GET + pickle.TUPLE1 + pickle.REDUCE) * 60_000),
    "sets copied again and again": archived(LONG, (SET + GET + pickle.TUPLE1 + pickle.REDUCE) * 9_000),
    "sizes copied again and again": archived(LONG, (SIZE + GET + pickle.TUPLE1 + pickle.REDUCE) * 9_000),
    "arguments copied again and again": archived(LONG, (GET + pickle.BINPERSID) * 90_000),
    "states copied again and again": archived(PAIRS, MADE, (GET + pickle.BUILD) * 90_000),
    "classes called again and again": archived(LONG, (name("a", "B") + GET + pickle.REDUCE) * 40_000),
    "states of classes again and again": archived(PAIRS, name("a", "B"), many(), NEW, (GET + pickle.BUILD) * 90_000),
    "items of a class again and again": archived(name("a", "B"), many(), NEW, (pickle.MARK + LONG + APPENDS) * 20),
    "memories of one": archived(pickle.NONE, pickle.MEMOIZE * 300_000),
    "frames": archived(pickle.FRAME + b"\xff" * 8, pickle.MARK, (pickle.FRAME + bytes(8)) * 90_000),
    "a large text": archived(pickle.BINUNICODE8 + b"\xff" * 7 + b"\x7f"),
    "a large buffer of protocol 5": archived(pickle.BYTEARRAY8 + b"\xff" * 7 + b"\x0f"),
    "a long key again and again": archived(LONG, pickle.EMPTY_DICT, (GET + pickle.NONE + pickle.SETITEM) * 90_000),
    "a key of shared tuples": archived(many(NESTED), pickle.EMPTY_DICT, GET, pickle.NONE, pickle.SETITEM),
    "keys of one hash": archived(pickle.EMPTY_DICT, pickle.MARK, COLLIDING, pickle.SETITEMS),
    "a name of shared tuples": archived(many(NESTED), pickle.EMPTY_DICT, GET, tensor(), pickle.SETITEM),
    "empty lists": archived(pickle.MARK, pickle.EMPTY_LIST * 300_000, pickle.TUPLE),
    "ordered mappings": archived(pickle.MARK, MADE * 12_000, pickle.TUPLE),
    "a mapping in itself": archived(pickle.EMPTY_DICT, PUT, text("state_dict"), GET, pickle.SETITEM),
    "a list in itself": archived(pickle.EMPTY_LIST, PUT, GET, pickle.APPEND),
    "marks": archived(pickle.MARK * 300_000),
    "a deep header": one_header(DEEP),
    "a header of empty lists": one_header(b'{"w":[' + b"[]," * 300_000 + b"[]]}"),
    "a long header": one_header(b"{" + b" " * (99 << 20)),
    "many elements and no bytes": one_header({"w": {"dtype": "F32", "shape": SHAPE, "data_offsets": [0, 0]}}),
    "a name of many parts": named("a." * 100_000),
    "names of many parts": named(*(f"{n}" + ".a" * 500 for n in range(1_000))),
    "a name of many layers": named("layers.0." * 30_000),
    "a name of many wrappers": named("module." * 100_000 + "w"),
    "a name of many compilations": named("_orig_mod." * 100_000 + "w"),
    "deep metadata": with_metadata("lwptv_recipe", "[" * 200_000),
    "deep names of a base": with_metadata("lwptv_base_tensors", '{"a":' * 100_000),
    "a deep index": file_of("m.index.json", DEEP),
    "a deep configuration": adapter(DEEP),
    "a product of factors": adapter({}, rows=100_000),
    "a large alpha": adapter({"lora_alpha": 10**4000}),
    "many patterns": adapter({"alpha_pattern": {f"x{n}": 1 for n in range(10_000)}}),
    "deep names of a model": with_configuration("config.json", DEEP),
    "a deep recipe": file_of("recipe.json", DEEP),
    "a number of many digits": file_of("recipe.json", b'{"scale": ' + b"9" * 10**6 + b"}"),
}  # fmt: skip


def use(path):
    """Open a file in each way that there is, which may end in an error of the library's."""
    if path.name == "recipe.json":
        with pytest.raises(ValueError, match=r"recipe\.json"):
            MergeRecipe.from_json(path)
        return
    for act in (
        lambda: read_all(open_checkpoint(path)),
        lambda: TaskVectors.open(BASE, {"a": path}),
        lambda: TaskVectors.open(path, {"a": BASE}),
        lambda: check(BASE, {"a": path}),
    ):
        with contextlib.suppress(ValueError):
            act()


def read_all(checkpoint):
    for each in checkpoint.names:
        checkpoint.read(each)


def used(path):
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    warnings.simplefilter("ignore")
    began = time.process_time()
    use(path)
    return time.process_time() - began


def test_what_would_grow_is_bounded(tmp_path, amount, row):
    tried = list(BOMBS)[:: amount(5, 1)]
    ended, slowest = {}, 0.0
    for bomb in tried:
        folder = tmp_path / bomb.replace(" ", "-")
        folder.mkdir()
        path = BOMBS[bomb](folder)
        seconds, ended[bomb] = forked(lambda path=path: used(path), seconds=60)
        slowest = max(slowest, seconds or 0.0)
    assert {bomb: how for bomb, how in ended.items() if how is not None} == {}
    assert slowest < SECONDS
    said = f"each opened in five ways within {MEMORY >> 20} MB and {SECONDS:g} s of the processor"
    row(f"{len(tried)} kinds of files that would grow", said)

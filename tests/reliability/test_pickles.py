"""Files that carry code, in every way that a pickle can: none of it runs; weights beside it are read, or refused."""

import copyreg
import io
import json
import marshal
import pickle
import struct
import sys
import tarfile
import types
import zipfile

import pytest
from _helpers.forked import forked
from _helpers.torch_archives import PROTO, call, many, mapping, name, number, tensor, text, whole, write_archive

from lwptv_lightning import CheckpointError, TaskVectors, open_checkpoint
from lwptv_lightning.inspection import check

HOME = "lwptv_test_of_pickles"
"""A module that pickles find by its name, with classes that run code in each way that an object can."""


def bytes_of(content):
    return call(name("_codecs", "encode"), text(content.decode("latin-1")), text("latin1"))


def made_of(kind, *arguments):
    return name(HOME, kind) + many(*arguments) + pickle.NEWOBJ


def gadgets(mark):
    """Return, by what it is, instructions that put an object on the stack and make the folder ``mark`` on the way."""
    path, source = text(mark), text(f"__import__('os').mkdir({mark!r})")
    called = call(name("os", "mkdir"), path)
    inner = whole(called)
    own = (name("builtins", "object"), many(path), pickle.NONE)
    module = call(name("builtins", "getattr"), name("os", "path"), text("os"))
    code = marshal.dumps(compile(f"__import__('os').mkdir({mark!r})", "x", "exec"))
    function = call(name("types", "FunctionType"), call(name("marshal", "loads"), bytes_of(code)), pickle.EMPTY_DICT)
    command = pickle.EMPTY_LIST + text("mkdir") + pickle.APPEND + path + pickle.APPEND
    call_by_name = {
        "os.mkdir": call(name("os", "mkdir"), path),
        "posix.mkdir": call(name("posix", "mkdir"), path),
        "os.makedirs": call(name("os", "makedirs"), path),
        "os.system": call(name("os", "system"), text(f"mkdir '{mark}'")),
        "exec": call(name("builtins", "exec"), source),
        "eval": call(name("builtins", "eval"), source),
        "eval of Python 2": call(name("__builtin__", "eval"), source),
        "subprocess": call(name("subprocess", "call"), command),
        "subprocess in a shell": call(name("subprocess", "getoutput"), text(f"mkdir '{mark}'")),
        "timeit": call(name("timeit", "timeit"), source, text("pass"), name("time", "perf_counter"), number(1)),
        "profiler": call(name("cProfile", "run"), source),
        "a pickle in it": call(name("pickle", "loads"), bytes_of(inner)),
        "the C unpickler": call(name("_pickle", "loads"), bytes_of(inner)),
        "marshalled code": function + pickle.EMPTY_TUPLE + pickle.REDUCE,
        "a method": call(call(name("operator", "methodcaller"), text("mkdir")), call(name("pathlib", "Path"), path)),
        "a partial": call(call(name("functools", "partial"), name("os", "mkdir"), path)),
        "a lookup": call(module + pickle.POP + name("os", "mkdir"), path),
        "an import": call(name("importlib", "import_module"), text(f"{HOME}_on_import")),
        "a lazy map": call(name("builtins", "list"), call(name("builtins", "map"), name("os", "mkdir"), many(path))),
        "a rebuilt type": call(name("torch._tensor", "_rebuild_from_type_v2"), name("os", "mkdir"), *own),
        "an old loader of torch's": call(name("torch.storage", "_load_from_bytes"), bytes_of(inner)),
        "a runner of torch's": call(name("torch.utils.collect_env", "run"), text(f"mkdir '{mark}'")),
        "numpy's loader": call(name("numpy", "loads"), bytes_of(inner)),
    }  # fmt: skip
    by_instruction = {
        "INST": pickle.MARK + path + pickle.INST + b"os\nmkdir\n",
        "OBJ": pickle.MARK + name("os", "mkdir") + path + pickle.OBJ,
        "STACK_GLOBAL": call(text("os") + text("mkdir") + pickle.STACK_GLOBAL, path),
        "NEWOBJ": made_of("New", path),
        "NEWOBJ_EX": name(HOME, "New") + many(path) + pickle.EMPTY_DICT + pickle.NEWOBJ_EX,
        "BUILD": made_of("State") + path + pickle.BUILD,
        "BUILD of attributes": made_of("Attribute") + pickle.NONE + mapping(a=path) + pickle.TUPLE2 + pickle.BUILD,
        "SETITEM": made_of("Entries") + text("a") + path + pickle.SETITEM,
        "SETITEMS": made_of("Entries") + pickle.MARK + text("a") + path + pickle.SETITEMS,
        "APPEND": made_of("Entries") + path + pickle.APPEND,
        "APPENDS": made_of("Entries") + pickle.MARK + path + pickle.APPENDS,
        "ADDITEMS": made_of("Entries") + pickle.MARK + path + pickle.ADDITEMS,
        "a key": pickle.EMPTY_DICT + made_of("Key") + mapping(path=path) + pickle.BUILD + pickle.NONE + pickle.SETITEM,
        "EXT1": call(pickle.EXT1 + b"\xf0", path),
        "EXT2": call(pickle.EXT2 + struct.pack("<H", 0xF0), path),
        "EXT4": call(pickle.EXT4 + struct.pack("<I", 0xF0), path),
        "FRAME": pickle.FRAME + struct.pack("<Q", len(called)) + called,
        "MEMOIZE": call(name("os", "mkdir") + pickle.MEMOIZE, path),
        "DUP": call(name("os", "mkdir") + pickle.DUP + pickle.POP, path),
    }  # fmt: skip
    return call_by_name | by_instruction


def module_of_gadgets():
    """Return the module that pickles find, whose classes make the folder that they are given."""
    from os import mkdir

    class New:
        def __new__(cls, path):
            mkdir(path)
            return object.__new__(cls)

    class State:
        def __setstate__(self, path):
            mkdir(path)

    class Attribute:
        def __setattr__(self, attribute, path):
            mkdir(path)

    class Entries:
        def __setitem__(self, key, path):
            mkdir(path)

        def append(self, path):
            mkdir(path)

        add = append

    class Key:
        def __hash__(self):
            mkdir(self.path)
            return 0

    made = types.ModuleType(HOME)
    for kind in (New, State, Attribute, Entries, Key):
        kind.__module__, kind.__qualname__ = HOME, kind.__name__
        setattr(made, kind.__name__, kind)
    return made


def ordered_weights():
    return call(name("collections", "OrderedDict")) + text("w") + tensor() + pickle.SETITEM


NEW, SET = pickle.NEWOBJ, pickle.BUILD
PLACES = {
    "alone": lambda gadget: gadget,
    "a tensor": lambda gadget: mapping(w=tensor(), evil=gadget),
    "a hyper-parameter": lambda gadget: mapping(state_dict=mapping(w=tensor()), hyper_parameters=gadget),
    "a key": lambda gadget: pickle.EMPTY_DICT + gadget + tensor() + pickle.SETITEM,
    "an optimiser's": lambda gadget: mapping(w=tensor(), optimizer_states=pickle.EMPTY_LIST + gadget + pickle.APPEND),
    "a state": lambda gadget: mapping(
        state_dict=mapping(w=tensor()), x=name(HOME, "State") + many() + NEW + gadget + SET
    ),
    "an attribute": lambda gadget: ordered_weights() + mapping(_metadata=gadget) + pickle.BUILD,
}
"""Where in a training checkpoint code may stand."""
BESIDE_WEIGHTS = ("a hyper-parameter", "a state", "an attribute")
"""Where it stands beside whole weights, which are read."""
NUMBERS = struct.pack("<Q4f", 4, 1, 2, 3, 4)


def sequence(*, magic=None, protocol=None, content=None, keys=None):
    """Return a file of before torch 1.6, of whose pickles one is another."""
    usual = (number(0x1950A86A20F9469CFC6C), number(1001), mapping(little_endian=pickle.NEWTRUE), mapping())
    keyed = pickle.EMPTY_LIST if keys is None else keys
    given = (magic or usual[0], protocol or usual[1], usual[2], content or usual[3], keyed)
    return b"".join(map(whole, given)) + NUMBERS


def tar_of(content):
    """Return a file of before torch 0.1.10."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for entry, values in {"storages": whole(number(0)), "tensors": whole(number(0)), "pickle": content}.items():
            information = tarfile.TarInfo(entry)
            information.size = len(values)
            archive.addfile(information, io.BytesIO(values))
    return made.getvalue()


def in_folder(file):
    def write(folder, content):
        write_archive(folder / file, content)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
        return folder

    return write


def in_shard(folder, content):
    write_archive(folder / "shard.bin", content)
    (folder / "m.index.json").write_text(json.dumps({"weight_map": {"w": "shard.bin"}}))
    return folder / "m.index.json"


def written(file, make):
    def write(folder, content):
        (folder / file).write_bytes(make(content))
        return folder / file

    return write


def archive_of(**options):
    def write(folder, content):
        return write_archive(folder / "m.ckpt", content, **options)

    return write


def inside_another(folder, content):
    write_archive(folder / "inner", content)
    return write_archive(folder / "m.pt", (folder / "inner").read_bytes())


FORMATS = {
    "archive": archive_of(),
    "archive, compressed": archive_of(method=zipfile.ZIP_DEFLATED),
    "script": archive_of(**{"constants.pkl": b"", "code/m.py": "import os"}),
    "archive in an archive": inside_another,
    "pickle": written("m.pkl", bytes),
    "tar": written("m.tar", tar_of),
    "safetensors by name": written("m.safetensors", bytes),
    "header": written("m.safetensors", lambda content: len(content).to_bytes(8, "little") + content),
    "pytorch_model.bin": in_folder("pytorch_model.bin"),
    "adapter_model.bin": in_folder("adapter_model.bin"),
    "shard": in_shard,
}
SLOTS = ("magic", "protocol", "content", "keys")


def files_with(gadget, thorough):
    """Yield what tells a file apart, and the function that writes it to a folder."""
    for place, put in PLACES.items():
        content = whole(put(gadget))
        for format, write in FORMATS.items() if thorough or place == "alone" else [("archive", FORMATS["archive"])]:
            yield f"{format}, {place}", lambda folder, write=write, content=content: write(folder, content)
    for slot in SLOTS:
        for place, put in PLACES.items() if slot == "content" else [("alone", PLACES["alone"])]:
            raw = sequence(**{slot: put(gadget)})
            write = written("m.pth", lambda _, raw=raw: raw)
            yield f"sequence, {slot}, {place}", lambda folder, write=write: write(folder, b"")


@pytest.fixture
def home(monkeypatch):
    monkeypatch.setitem(sys.modules, HOME, module_of_gadgets())
    copyreg.add_extension("os", "mkdir", 0xF0)
    yield
    copyreg.remove_extension("os", "mkdir", 0xF0)


def test_no_code_in_a_file_is_run(tmp_path, home, amount, row):
    mark = tmp_path / "ran"
    tried = read = 0
    for what, gadget in gadgets(str(mark)).items():
        for which, write in files_with(gadget, amount(False, True)):
            folder = tmp_path / f"{tried}"
            folder.mkdir()
            path = write(folder)
            for use in (by_opening, by_merging, by_checking) if amount(False, True) else (by_opening,):
                values = refused_or_read(use, path)
                assert not mark.exists(), (what, which)
                assert values is None or (which.endswith(BESIDE_WEIGHTS) and values == [1, 2, 3, 4]), (what, which)
                read += values is not None
            tried += 1
    assert tried >= 124
    assert read >= 60
    row(
        f"{tried:,} files with code, of {len(gadgets('x'))} kinds in {len(FORMATS) + 1} formats",
        "0 executed; the weights beside it were read, all other files refused",
    )


def refused_or_read(use, path):
    try:
        return use(path)
    except CheckpointError:
        return None


def by_opening(path):
    return open_checkpoint(path).read("w").tolist()


def by_merging(path):
    return TaskVectors.open({"w": tensor_of_ones()}, {"a": path}).expert("a", "w").tolist()


def by_checking(path):
    found = check({"w": tensor_of_ones()}, {"a": path})
    return [1, 2, 3, 4] if found[0].matched else None


def tensor_of_ones():
    import torch

    return torch.ones(4)


def test_the_code_is_a_live_one(tmp_path, home):
    mark = tmp_path / "ran"
    asleep = []
    for what, gadget in gadgets(str(mark)).items():
        raw = PROTO + gadget + pickle.STOP
        forked(lambda raw=raw: pickle.loads(raw) and None)
        if mark.exists():
            mark.rmdir()
        else:
            asleep.append(what)
    # The first needs a module on the disk, the other what numpy has no more.
    assert asleep == ["an import", "numpy's loader"]

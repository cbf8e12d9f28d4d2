"""A user's mistake ends with a line that names it in the shell's words: no traceback, no file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _helpers.processes import environment
from _helpers.states import noise
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, open_checkpoint
from lwptv_lightning.cli import main
from lwptv_lightning.cli.main import COMMANDS

BASE = {"stem.weight": (8, 8), "fc.weight": (4, 8), "fc.bias": (4,)}
MERGE = ["merge", "base.safetensors", "a=a.safetensors", "c=c.safetensors", "--out", "out/merged.safetensors"]
CHECK = ["check", "base.safetensors", "a=a.safetensors"]
DIFF = ["diff", "base.safetensors", "a.safetensors"]
VIT = [*CHECK, "--model", "vit_tiny_patch16_224", "--model-option", "depth=1"]
FACTORS = {"base_model.model.fc.lora_A.weight": torch.ones(2, 8), "base_model.model.fc.lora_B.weight": torch.ones(4, 2)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a base and two tasks."""
    monkeypatch.chdir(tmp_path)
    base = noise({name: torch.zeros(shape) for name, shape in BASE.items()}, 0, 1.0)
    save_file(base, "base.safetensors")
    for seed, task in enumerate("ac", start=1):
        save_file(noise(base, seed, 0.01), f"{task}.safetensors")
    Path("folder").mkdir()
    return tmp_path


@pytest.fixture
def told(folder, capsys):
    """``told(*arguments)``: run a command that must fail, and return what it says."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert stop.value.code not in (0, None)
        said = f"{stop.value.code} {captured.err} {captured.out}"
        assert "Traceback" not in said
        return said

    return run


def write_safetensors(name, tensors, **metadata):
    Path(name).parent.mkdir(exist_ok=True)
    save_file(tensors, name, metadata=metadata)
    return name


def write_text(name, text):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)
    return name


def write_torch(name, content):
    torch.save(content, name)
    return name


def write_adapter(config):
    write_safetensors("adapter/adapter_model.safetensors", FACTORS)
    write_text("adapter/adapter_config.json", config)
    return "adapter"


SOURCES = {
    "missing": (lambda: "nowhere.pt", "no checkpoint at 'nowhere.pt'"),
    "a folder": (lambda: "folder", "in this folder"),
    "empty": (lambda: write_text("empty", ""), "empty: not a readable checkpoint"),
    "empty safetensors": (lambda: write_text("e.safetensors", ""), "e.safetensors: not a readable safetensors"),
    "junk": (lambda: write_text("junk.safetensors", "abc" * 40), "junk.safetensors: not a readable safetensors"),
    "a list": (lambda: write_torch("list.pt", [1]), "holds a list, expected a state dict"),
    "numbers": (lambda: write_torch("numbers.pt", {"a": 1}), "these are none: a"),
    "keys that are no texts": (lambda: write_torch("keys.pt", {3: torch.ones(2)}), "texts as names, not 3"),
    "an index of lists": (lambda: write_text("i.index.json", '{"weight_map": [1]}'), "weight_map must map"),
    "an index of numbers": (lambda: write_text("i.index.json", '{"weight_map": {"w": 3}}'), "weight_map must map"),
    "an index to a folder": (lambda: write_text("i.index.json", '{"weight_map": {"w": "folder"}}'), "missing: folder"),
    "an adapter of no configuration": (lambda: write_adapter("[]"), "expected a mapping of options"),
    "an alpha that is a word": (
        lambda: write_adapter('{"peft_type": "LORA", "lora_alpha": "x"}'),
        "lora_alpha must be",
    ),
    "patterns of numbers": (
        lambda: write_adapter('{"peft_type": "LORA", "alpha_pattern": 3}'),
        "alpha_pattern must map",
    ),
    "a broken pattern": (
        lambda: write_adapter('{"peft_type": "LORA", "alpha_pattern": {"(": 1}}'),
        "alpha_pattern has '(', which is no pattern",
    ),
    "a kind that is none": (
        lambda: write_safetensors("t.safetensors", {"fc.bias": torch.ones(4)}, lwptv_kind="task_vektor"),
        "Did you mean 'task_vector'",
    ),
    "broken fingerprints": (
        lambda: write_safetensors("t.safetensors", {"w": torch.ones(4)}, lwptv_kind="base", lwptv_base_tensors="3"),
        "lwptv_base_tensors is 3",
    ),
    "a name on the hub": (lambda: "hf-hub:x", "'hf-hub:x' is no name on the hub"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_cannot_be_read_is_named_wherever_it_stands(source, told):
    make, words = SOURCES[source]
    path = make()
    for arguments in (["merge", "base.safetensors", f"a={path}", *MERGE[-2:]], ["diff", "base.safetensors", path]):
        assert words in " ".join(told(*arguments).split())
    shown = " ".join(told("check", "base.safetensors", f"a={path}").split())
    assert "a " in shown
    assert not Path("out/merged.safetensors").exists()


RECIPES = [
    "{",
    "[" * 100_000,
    "3",
    "null",
    '{"rule": 3}',
    '{"rule": {"name": []}}',
    '{"rule": {"name": "ties", "density": [1]}}',
    '{"ratio": {}}',
    '{"ratio": true}',
    '{"scale": NaN}',
    '{"keep": 3}',
    '{"granularity": []}',
    '{"score": {}}',
    '{"seed": 1.5}',
    '{"elements": []}',
    '{"layer_scaling": {"fc": "x"}}',
    '{"dtype": []}',
    '{"task": 3}',
    '{"rule": {"name": "task_arithmetic", "coefficients": ["x"]}}',
]


@pytest.mark.parametrize("text", RECIPES, ids=lambda text: text[:40])
def test_a_recipe_of_wrong_types_is_named_by_its_file(text, told):
    write_text("recipe.json", text)
    assert "lwptv merge: recipe.json: " in told(*MERGE, "--recipe", "recipe.json")


@pytest.mark.parametrize("path", ["nowhere.json", "folder"])
def test_a_recipe_that_is_no_file(path, told):
    assert path in told(*MERGE, "--recipe", path)


STATISTICS = {
    "of a task that is not there": ({"5.fc.weight": (4, 8)}, '["a", "c"]', "damaged file of data statistics"),
    "without tasks": ({"0.fc.weight": (4, 8)}, None, "damaged file of data statistics"),
    "of a broken list": ({"0.fc.weight": (4, 8)}, "{", "damaged file of data statistics"),
    "of one task": ({"0.fc.weight": (4, 8)}, '["a"]', "no entry for task 'c'"),
    "of another shape": ({"0.fc.weight": (3,), "1.fc.weight": (3,)}, '["a", "c"]', "shape (3,) for 'fc.weight'"),
}


@pytest.mark.parametrize("kind", STATISTICS)
def test_data_statistics(kind, told):
    shapes, tasks, words = STATISTICS[kind]
    about = {"lwptv_kind": "data_statistics"} | ({} if tasks is None else {"lwptv_tasks": tasks})
    write_safetensors("statistics.safetensors", {name: torch.ones(shape) for name, shape in shapes.items()}, **about)
    assert words in told(*MERGE, "--rule", "fisher", "--data-statistics", "statistics.safetensors")


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta", "", "cuda:x", "vulkan"])
def test_a_device_that_is_not_here(device, told):
    said = told(*MERGE, "--device", device)
    assert f"--device {device!r} cannot be used: " in said
    assert "Here are cpu" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_without_one(told):
    assert "--device 'cuda' cannot be used" in told(*MERGE, "--device", "cuda")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("img_size=x", "TypeError"),
        ("nope=1", "unexpected keyword argument 'nope'"),
        ("embed_dim=7", "divisible"),
        ("num_heads=0", "ZeroDivisionError"),
        ("norm_layer=x", "KeyError: 'x'"),
        ("depth=-1", "model-option is given twice: 'depth'"),
        ("img_size", "must be given as NAME=VALUE"),
        ("pretrained=true", "pretrained cannot be given"),
        ("checkpoint_path=/nowhere", "checkpoint_path cannot be given"),
    ],
)
def test_options_that_a_model_refuses(setting, words, told):
    said = told(*VIT, "--model-option", setting)
    assert "--model" in said
    assert words in said


PLACES = {
    "base.safetensors": "--overwrite",
    "base.safetensors/x.safetensors": "base.safetensors",
    "/proc/x.safetensors": "--out /proc/x.safetensors: nothing can be written to /proc",
    "x" * 300 + ".safetensors": "too long",
}


@pytest.mark.parametrize("path", PLACES, ids=lambda path: path[:30])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(path, told, monkeypatch):
    monkeypatch.setattr("lwptv_lightning.task_vectors.TaskVectors.open", lambda *_, **__: pytest.fail("opened"))
    assert PLACES[path] in told(*MERGE[:-1], path)


def test_an_out_that_is_a_folder(told):
    Path("merged.safetensors").mkdir()
    assert "--out merged.safetensors is a folder" in told(*MERGE[:-1], "merged.safetensors", "--overwrite")


def test_the_demo_says_at_once_that_it_cannot_write(told, monkeypatch):
    monkeypatch.setattr("lwptv_lightning.zoo.demo.zoo_module", lambda: pytest.fail("began"))
    assert "base.safetensors" in told("demo", "--out", "base.safetensors")


NUMBERS = ("--ratio", "--scale", "--seed", "--elements", "--lines-alpha", "--lines-beta", "--max-memory")


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "x", ""])
@pytest.mark.parametrize("option", NUMBERS)
def test_numbers_that_are_none(option, value, told):
    assert option in told(*MERGE, f"{option}={value}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*MERGE[:2], "a", *MERGE[-2:]], "a task must be given as NAME=VALUE, not 'a'"),
        ([*MERGE[:2], "=a.safetensors", *MERGE[-2:]], "not '=a.safetensors'"),
        ([*MERGE[:3], "a=c.safetensors", *MERGE[-2:]], "a task is given twice: 'a'"),
        ([*MERGE, "--exclude", "["], "unknown exclude pattern '['"),
        ([*CHECK, "--exclude", "nothing.*"], "unknown exclude pattern 'nothing.*'"),
        ([*CHECK, "--exclude", "*"], "no floating tensor is left"),
        ([*MERGE, "--keep", "(", "--ratio", "0.5"], "unknown layer pattern '('"),
        ([*CHECK, "--prefix", "zzz."], "--prefix 'zzz.'"),
        ([*DIFF, "--prefix", "zzz."], "--prefix 'zzz.'"),
        ([*MERGE, "--prefix", "zzz."], "--prefix 'zzz.'"),
        ([*CHECK, "--model", "no_such"], "--model: Unknown model"),
        ([*MERGE, "--rule", "fisher"], "needs --data-statistics, its fisher"),
        ([*MERGE, "--rule", "iso_c", "--max-memory", "1KB"], "--max-memory is 0 MB"),
        ([*DIFF, "--granularity", "x"], "--granularity"),
        (["zoo", "build", "--out", "base.safetensors"], "new or empty folder"),
        (["zoo", "build", "--out", "z", "--seed", "-1"], "at least 0"),
        (["demo", "--size", "0"], "--size must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_names_patterns_and_pairs(arguments, words, told):
    assert words in " ".join(told(*arguments).split())


def test_errors_speak_the_shells_words(told):
    save_file({"fc.weight": torch.ones(4, 8)}, "short.safetensors")
    said = told("merge", "base.safetensors", "a=short.safetensors", *MERGE[-2:])
    assert "Tensors that are not to be merged go into --exclude." in said
    assert "exclude=(" not in said
    names = [f"{prefix}{name}" for prefix in ("x.", "y.") for name in BASE]
    save_file({name: torch.ones(BASE[name[2:]]) for name in names}, "two.safetensors")
    assert "name one with --prefix" in told("merge", "base.safetensors", "a=two.safetensors", *MERGE[-2:])


def test_warnings_are_one_line_in_the_shells_words(folder):
    command = [sys.executable, "-m", "lwptv_lightning", *MERGE[:2], "a=base.safetensors", *MERGE[-2:]]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.stderr == "lwptv merge: warning: task 'a' equals the base: its task vector is zero.\n"
    assert done.returncode == 0


def test_names_with_brackets_are_shown_as_they_are(folder, capsys):
    state = {"[bold]w[/file]": torch.randn(4, 4, generator=torch.Generator().manual_seed(0))}
    for name, tensors in (("b", state), ("t", noise(state, 1, 0.01))):
        save_file(tensors, f"{name}.safetensors")
    main(["check", "b.safetensors", "[red]a[/x]=t.safetensors"])
    main(["diff", "b.safetensors", "t.safetensors", "--granularity", "tensor"])
    shown = capsys.readouterr().out
    assert "[red]a[/x]" in shown
    assert "[bold]w[/file]" in shown


CONFIGURATIONS = {
    "an accelerator that is not here": ({"trainer": {"accelerator": "mps"}}, "MPS"),
    "a rule that is none": ({"model": {"init_args": {"recipe": "nope"}}}, "unknown merging rule 'nope'"),
    "an argument that is none": ({"data": {"init_args": {"nope": 1}}}, "nope"),
}


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="the one that must not be here is")
@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_configurations(kind, told):
    changes, words = CONFIGURATIONS[kind]
    content = {"trainer": {"accelerator": "cpu"}}
    for part, function in (("model", "zoo_module"), ("data", "zoo_suite")):
        content[part] = {"class_path": f"lwptv_lightning.zoo.{function}"}
    for part, change in changes.items():
        content[part] |= change
    write_text("validate.yaml", json.dumps(content))
    assert words in told("validate", "--config", "validate.yaml")


def test_every_command_refuses_what_it_does_not_know(told):
    for command in COMMANDS:
        assert "error: " in told(command, "--no-such-option")


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_tensors_are_named():
    with pytest.raises(CheckpointError, match="sparse or quantized; make them dense: w"):
        open_checkpoint({"w": torch.eye(3).to_sparse()})

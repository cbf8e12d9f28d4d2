"""Whatever stands in the place of an argument, a recipe, a state or a file ends in the library's own error by name."""

import dataclasses
import json
from collections import Counter
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from _helpers.hostile import VALUES, names_in, nothing_written, refused
from _helpers.states import noise
from safetensors.torch import save_file
from torch import nn

from lwptv_lightning import (
    Execution,
    Layer,
    LayerMask,
    Layers,
    LayerTable,
    LiNeS,
    Merge,
    MergeModule,
    MergeRecipe,
    Provenance,
    TaskVectors,
    collect_statistics,
    get_rule,
    install_,
    keep_most_salient,
    layers_from_names,
    make_recipe,
    merge,
    merge_transform,
    plan_pruning,
    save_merged,
    score_layers,
    trace_layers,
)
from lwptv_lightning.checkpoints import fingerprint
from lwptv_lightning.cli import main
from lwptv_lightning.evaluation import EvaluationSuite, Heads
from lwptv_lightning.inspection import check, diff
from lwptv_lightning.merging import read_data_statistics, write_data_statistics
from lwptv_lightning.modifiers import CALIBRATIONS, REWEIGHTINGS, SUBSPACES, modifier_entries
from lwptv_lightning.rules import RULES, make_rule

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPES = {"0.weight": (8, 8), "0.bias": (8,), "1.weight": (8, 8), "1.bias": (8,)}
BASE = noise({name: torch.zeros(shape) for name, shape in SHAPES.items()}, 0, 1.0)
TASKS = {task: noise(BASE, seed, 0.01) for seed, task in enumerate("ac", start=1)}
MERGING = ("device", "dtype", "task", "mask", "scores", "statistics", "data", "execution", "ranks", "max_memory")
KEYS = (
    "lwptv_kind",
    "lwptv_task_fingerprints",
    "lwptv_base_tensors",
    "lwptv_recipe",
    "lwptv_scale",
    "lwptv_mask",
    "lwptv_versions",
    "lwptv_density",
    "lwptv_progress",
    "lwptv_metrics",
    "lwptv_changed",
    "lwptv_evaluated_in",
)


def as_json(value):
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return None


def recipes(value):
    """Yield cases of one value: what it stands for, the call, and what names it."""
    for field in dataclasses.fields(MergeRecipe):
        # What calibrates is a calibration.
        given, names = {field.name: value}, (field.name.removesuffix("e"), "alpha", *names_in(value))
        yield f"from_dict {field.name}", partial(MergeRecipe.from_dict, given), names
        yield f"merge {field.name}", partial(merge, vectors(), given), names
        if (text := as_json(given)) is not None:
            yield f"from_json {field.name}", partial(MergeRecipe.from_json, text), names
    for function in (MergeRecipe.from_dict, MergeRecipe.from_json, make_recipe, get_rule, make_rule):
        yield function.__name__, partial(function, value), ()
    yield "options of make_recipe", partial(make_recipe, "ties", value), ()
    for name in ("alpha", "beta", "blocks"):
        yield f"LiNeS {name}", partial(LiNeS, **{name: value}), (name,)


def rules(value):
    for name, rule in RULES.items():
        for field in dataclasses.fields(rule):
            yield f"{name} {field.name}", partial(make_rule, {"name": name, field.name: value}), (field.name,)


def modifiers(value):
    for entry in modifier_entries():
        cls = next(known[entry.name] for known in (REWEIGHTINGS, CALIBRATIONS, SUBSPACES) if entry.name in known)
        for field in dataclasses.fields(cls):
            given = {entry.field: {"name": entry.name, field.name: value}}
            yield f"{entry.name} {field.name}", partial(MergeRecipe.from_dict, given), (field.name,)


def options(value):
    pruning = MergeRecipe(ratio=0.5)
    for name in MERGING if value is not None else ():
        known = (name, "statistics", *names_in(value))
        yield f"merge {name}", partial(merge, vectors(), pruning, **{name: value}), known
    for name in ("device", "ranks", "max_memory", "compiled", "block_bytes"):
        yield f"Execution {name}", partial(Execution, **{name: value}), (name,)
    if value is not None:
        yield "layers of a merge", partial(merge, vectors(), pruning, value), ("layers",)
        yield "plan", partial(Merge(vectors(), pruning).plan, value), ("execution",)
    for function in (merge, plan_pruning, partial(merge_transform, model())):
        yield "vectors", partial(function, value, "ties"), ("vectors",)
    yield "vectors to save", partial(save_merged, value, "ties", "o.safetensors"), ("vectors",)
    yield "place to save", partial(save_merged, vectors(), "ties", value), (".safetensors",)
    if not (isinstance(value, int) and value > 0):
        save = partial(save_merged, vectors(), "ties", "o.safetensors")
        yield "size", partial(save, max_shard_size=value), ("max_shard_size",)
    yield "model", partial(merge_transform, value, vectors(), "ties"), ("model", "Linear")
    yield "module to install into", partial(install_, value, BASE), ("module", "Linear")
    yield "tensors to install", partial(install_, model(), value), ("tensors", *names_in(value))
    yield "tensor to install", partial(install_, model(), {"0.weight": value}), ("0.weight",)


def tables(value):
    layers, statistics, table = measured()
    yield "vectors of statistics", partial(collect_statistics, value, layers), ("vectors",)
    yield "layers of statistics", partial(collect_statistics, vectors(), value), ("layers",)
    yield "statistics of scores", partial(score_layers, value), ("stats",)
    yield "score", partial(score_layers, statistics, value), ("score",)
    yield "seed", partial(score_layers, statistics, "random", seed=value), ("seed",)
    yield "scores", partial(keep_most_salient, value, 0.5), ("scores",)
    for name in ("ratio", "ranking", "count", "keep", "prune"):
        yield name, partial(keep_most_salient, table, **{"ratio": 0.5} | {name: value}), (name, *names_in(value))
    yield "table in JSON", partial(LayerTable.from_json, value), ("table",)
    whole = {"tasks": ("a",), "layers": ("x",), "numel": torch.ones(1), "values": torch.ones(1, 1)}
    for name in whole:
        yield f"table's {name}", partial(LayerTable, **whole | {name: value}), ("a table's ",)
        plain = {"tasks": ["a"], "layers": ["x"], "numel": [1], "values": [[1]]}
        if (text := as_json(plain | {name: value})) is not None:
            yield f"table's {name} in JSON", partial(LayerTable.from_json, text), ("table",)
    mask = {"tasks": ("a",), "layers": ("x",), "kept": torch.ones(1, 1).bool()}
    for name in mask:
        yield f"mask's {name}", partial(LayerMask, **mask | {name: value}), ("a mask's ",)


def layers(value):
    yield "traced", partial(trace_layers, value), ("model",)
    yield "granularity", partial(trace_layers, model(), value), ("granularity",)
    yield "names", partial(layers_from_names, value), ("names",)
    yield "layers", partial(Layers, value, "module"), ("layers",)
    yield "tensors", lambda: Layers((Layer("x", value),), "module"), ("tensors", "unique")
    yield "name", lambda: Layers((Layer(value, ("x",)),), "module"), ("name",)
    yield "index_of", partial(layers_from_names(SHAPES).index_of, value), ()
    yield "restrict", partial(layers_from_names(SHAPES).restrict, value), ()


def sources(value):
    found = names_in(value)
    for what, call in {
        "task": lambda: TaskVectors.open(BASE, {"t": value}),
        "base": lambda: TaskVectors.open(value, TASKS),
        "tensor": lambda: TaskVectors.open(BASE, {"t": TASKS["a"] | {"0.weight": value}}),
        "diff": lambda: diff(BASE, value),
        "checked base": lambda: check(value, TASKS),
        "joining": lambda: vectors().with_task("z", value),
    }.items():
        yield what, call, ()
    yield "tasks", partial(TaskVectors.open, BASE, value), ("task", "lines", *found)
    for name in ("exclude", "model", "prefix", "ema"):
        if value is not None:
            yield f"open {name}", partial(TaskVectors.open, BASE, TASKS, **{name: value}), (name, *found, "Linear")
            yield f"check {name}", partial(check, BASE, TASKS, **{name: value}), (name, *found, "Linear")
    for method in ("open_stack", "base", "classifier_state", "load", "select", "require_new", "knowing"):
        yield method, partial(getattr(vectors(), method), value), ()
    yield "fingerprint", partial(fingerprint, value), ("checkpoint",)
    yield "granularity", partial(diff, BASE, TASKS["a"], value), ("granularity",)


def metadata(value):
    yield "metadata", partial(Provenance.from_metadata, value), ()
    for key in KEYS:
        yield key, partial(Provenance.from_metadata, {key: value}), (key,)
        text = as_json(value)
        deep = "[" * 100_000 if text is None else text
        yield f"{key} in JSON", partial(Provenance.from_metadata, {key: deep}), (key,)


def data(value):
    yield "file", partial(read_data_statistics, value), ()
    for given in (value, {"a": value}, {"a": {"w": value}}):
        if value == {} or isinstance(value, torch.Tensor):
            continue  # which are data, or none
        yield "data to write", partial(write_data_statistics, given, "d.safetensors"), ("data",)
    yield "place", partial(write_data_statistics, {"a": {"w": torch.ones(1)}}, value), ("file",)
    for rule in ("fisher", "regmean"):
        for given in ({"a": value, "c": value}, {"a": {"0.weight": value}, "c": {}}):
            yield f"{rule} data", partial(merge, vectors(), rule, data=given), ("data", "statistics", *names_in(value))


def modules(value):
    for name in ("heads", "metric", "expert_accuracy"):
        # Heads that may be right cannot be used where the model's own classifier is not known.
        known = (name, name[:-1], "classifier", *names_in(value))
        yield name, partial(MergeModule, model(), vectors(), "ties", **{name: value}), known
    if not callable(value):
        yield "model", partial(MergeModule, value, vectors(), "ties"), ("model",)
    if value is not None:
        yield "vectors", partial(MergeModule, model(), value, "ties"), ("vectors",)
    yield "head", partial(Heads, {"a": value}), ("head",)
    yield "heads", partial(Heads, value), ("head",)
    yield "id", partial(EvaluationSuite, value), ("id", "dataloaders", *names_in(value))
    yield "a set", partial(EvaluationSuite, {"a": value}), ("a",)
    yield "suite", partial(EvaluationSuite.of, value), ("load", *names_in(value))


GROUPS = (recipes, rules, modifiers, options, tables, layers, sources, metadata, data, modules)


@cache
def vectors():
    return TaskVectors.open(BASE, TASKS)


@cache
def measured():
    layers = layers_from_names(vectors().names)
    statistics = collect_statistics(vectors(), layers)
    return layers, statistics, score_layers(statistics)


@cache
def model():
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def test_arguments(amount, row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tried, every = Counter(), amount(23, 1)
    cases = (
        (group.__name__, f"{group.__name__}, {what}: {label}", call, names)
        for label, value in VALUES.items()
        for group in GROUPS
        for what, call, names in group(value)
    )
    with nothing_written(tmp_path):
        for number, (group, what, call, names) in enumerate(cases):
            if number % every == 0:
                tried[group] += refused(what, call, names)
    assert len(tried) == len(GROUPS)
    assert sum(tried.values()) > amount(150, 4000)
    row(
        f"{sum(tried.values()):,} hostile arguments of {len(GROUPS)} parts of the public functions",
        "each refused by the library's own error, which names it; none hangs, none leaves a file",
    )


# Files and command lines

FACTORS = {"base_model.model.0.lora_A.weight": torch.ones(2, 8), "base_model.model.0.lora_B.weight": torch.ones(8, 2)}
TEXTS = ["", "{", "[]", "3", "null", "[" * 100_000, '{"a":' * 50_000, "\0", '{"weight_map": 3}']
TEXTS += ['{"weight_map": {"w": []}}', '{"weight_map": {"w": "../base.safetensors"}}']
SUFFIXES = (".safetensors", ".pt", ".ckpt", ".safetensors.index.json", "")
CONTENTS = [[1], 3, None, {"a": 1}, {3: torch.ones(2)}, {"w": None}, {"model": {"model": {"w": 1}}}]
OPTIONS = ("ratio", "scale", "seed", "elements", "dtype", "rule", "score", "granularity", "device", "max-memory", "set")
WORDS = ("nan", "inf", "1e400", "x", "", "\0", "[]", "9" * 5000, "x=" + "[" * 50_000, "-", "None")
SHORT = (["merge"], ["check"], ["diff"], ["zoo"], ["demo", "x"], ["x"], [], ["--x"], ["zoo", "x"], ["check", "b", "a"])


def hostile_files():
    """Write files that are none, and yield their paths."""
    for number, text in enumerate(TEXTS):
        for suffix in SUFFIXES:
            Path(f"{number}{suffix}").write_text(text)
            yield f"{number}{suffix}"
    for number, config in enumerate([*TEXTS, '{"peft_type": 3}', '{"peft_type": "LORA", "lora_alpha": []}']):
        Path(f"adapter{number}").mkdir()
        Path(f"adapter{number}/adapter_config.json").write_text(config)
        save_file(FACTORS, f"adapter{number}/adapter_model.safetensors")
        yield f"adapter{number}"
    for number, content in enumerate(CONTENTS):
        torch.save(content, f"content{number}.pt")
        yield f"content{number}.pt"
    for number, key in enumerate(KEYS):
        save_file(BASE, f"about{number}.safetensors", metadata={"lwptv_kind": "task_vector", key: "[" * 50_000})
        yield f"about{number}.safetensors"
    Path("folder").mkdir()
    yield from ("folder", "nowhere", "hf-hub:", "hf-hub:../..", "hf://x", "", "x" * 5000, "/proc/self/mem", "\udc80")


def command_lines(sources, recipes):
    ends = ["--out", "out.safetensors"]
    for source in sources:
        yield ["merge", "base.safetensors", f"a={source}", *ends]
        yield ["merge", source, "a=a.safetensors", *ends]
        yield ["diff", "base.safetensors", source]
        yield ["check", "base.safetensors", f"a={source}"]
        yield ["check", source, "a=a.safetensors"]
        yield ["merge", "base.safetensors", "a=a.safetensors", "--rule", "fisher", "--data-statistics", source, *ends]
    for recipe in recipes:
        yield ["merge", "base.safetensors", "a=a.safetensors", "--recipe", recipe, *ends]
    for option in OPTIONS:
        for value in WORDS:
            yield ["merge", "base.safetensors", "a=a.safetensors", f"--{option}={value}", *ends]
    for value in ("0", "-1", "x", "", "1e9", "9" * 5000):
        for arguments in (["demo", "--size"], ["demo", "--devices"], ["zoo", "build", "--seed"]):
            yield [*arguments[:-1], f"{arguments[-1]}={value}", "--out=base.safetensors"]
        yield from (["rules", value], ["scores", value])
    yield from SHORT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(BASE, "base.safetensors")
    save_file(TASKS["a"], "a.safetensors")
    return tmp_path


def test_command_lines(amount, row, folder, capsys):
    sources, every, tried = list(hostile_files()), amount(11, 1), 0
    texts = [*TEXTS, *(as_json({field.name: {"a": []}}) for field in dataclasses.fields(MergeRecipe))]
    for number, text in enumerate(texts):
        Path(f"recipe{number}.json").write_text(text)
    recipes = [f"recipe{number}.json" for number in range(len(texts))]
    with nothing_written(folder):
        for number, line in enumerate(command_lines(sources, recipes)):
            if number % every == 0:
                code, said = outcome(line, capsys)
                assert code != 0, f"{line}: accepted, {said[-300:]}"
                assert len(said.strip()) > 10, line
                assert "Traceback" not in said
                assert ": unexpected " not in said, said
                tried += 1
    assert tried > amount(50, 600)
    row(
        f"{tried:,} command lines over hostile files, recipes and options",
        "each ends with code 1 or 2 and words, never with a traceback; none leaves a file",
    )


def outcome(line, capsys):
    """Run a command line, and return its exit code and what it said."""
    with pytest.raises(SystemExit) as stop:
        main(line)
    captured = capsys.readouterr()
    code = stop.value.code
    said = f"{captured.out}{captured.err}"
    return (code, said) if isinstance(code, int) else (1, f"{said}{code}")

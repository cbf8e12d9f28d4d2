"""``lwptv merge``, run in this process."""

import dataclasses
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lwptv_lightning import LiNeS, MergeRecipe, TaskVectors, merge, merging, save_merged
from lwptv_lightning.cli import main
from lwptv_lightning.modifiers import modifier_entries


@pytest.fixture
def files(tmp_path, base_state, task_states):
    save_file(base_state, tmp_path / "base.safetensors")
    torch.save({"state_dict": task_states["a"], "epoch": 3}, tmp_path / "a.pt")
    save_file(task_states["b"], tmp_path / "b.safetensors")
    return tmp_path


def run_merge(files, *options, out="merged.safetensors"):
    tasks = [f"a={files / 'a.pt'}", f"b={files / 'b.safetensors'}"]
    main(["merge", str(files / "base.safetensors"), *tasks, "--out", str(files / out), *options])
    return files / out


def recipe_of(path):
    with safe_open(path, "pt") as handle:
        return MergeRecipe.from_json(handle.metadata()["lwptv_recipe"])


def test_merge_writes_what_the_library_merges(files, base_state, task_states, capsys):
    options = ["--rule", "ties", "--set", "density=0.5", "--set", "reduce=sum", "--scale", "0.7", "--ratio", "0.4"]
    path = run_merge(files, *options, "--score=-rms")
    assert str(path) in capsys.readouterr().out
    vectors = TaskVectors.open(base_state, {task: task_states[task] for task in "ab"})
    rule = {"name": "ties", "density": 0.5, "reduce": "sum"}
    recipe = MergeRecipe(rule, 0.7, score="-rms", ratio=0.4)
    expected = merge(vectors, recipe)
    merged = load_file(path)
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(merged[name], tensor)
    assert recipe_of(path) == recipe


def test_merge_reads_a_recipe_and_lets_options_change_it(files):
    (files / "recipe.json").write_text(MergeRecipe("ties", 0.2, ratio=0.5).to_json())
    path = run_merge(files, "--recipe", str(files / "recipe.json"), "--scale", "0.9")
    assert recipe_of(path) == MergeRecipe("ties", 0.9, ratio=0.5)


def test_a_recipes_file_may_hold_a_name_alone(files):
    (files / "recipe.json").write_text('{"rule": "ties"}')
    path = run_merge(files, "--recipe", str(files / "recipe.json"), "--set", "density=0.5")
    assert recipe_of(path) == MergeRecipe({"name": "ties", "density": 0.5})


OPTIONS = [
    (["--rule", "ties", "--set", "density=0.5"], {"rule": {"name": "ties", "density": 0.5}}),
    (["--set", "coefficients=[1, 2]"], {"rule": {"name": "task_arithmetic", "coefficients": [1, 2]}}),
    (["--scale", "-0.5"], {"scale": -0.5}),
    (["--score=-l2"], {"score": "-l2"}),
    (["--ratio", "0.25"], {"ratio": 0.25}),
    (["--granularity", "tensor"], {"granularity": "tensor"}),
    (["--ranking", "all"], {"ranking": "all"}),
    (["--count", "parameters"], {"count": "parameters"}),
    (["--keep", "layers.0", "--keep", "h*"], {"keep": ["layers.0", "h*"]}),
    (["--prune", "layers.0"], {"prune": ["layers.0"]}),
    (["--seed", "3"], {"seed": 3}),
    (["--elements", "0.5"], {"elements": {"ratio": 0.5}}),
    (["--prune-on", "parts"], {"prune_on": "parts"}),
    (["--dtype", "float64"], {"dtype": "float64"}),
    (["--rule", "emr", "--task", "a"], {"rule": "emr", "task": "a"}),
    (
        ["--lines-beta", "0.25", "--lines-alpha", "0.5"],
        {"layer_scaling": {"name": "lines", "alpha": 0.5, "beta": 0.25}},
    ),
]
OPTIONS += [
    (["--calibrate", "svc", "--set", "calibrate.alpha=0.25"], {"calibrate": {"name": "svc", "alpha": 0.25}}),
    (["--rule", "ties", "--set", "rule.density=0.5"], {"rule": {"name": "ties", "density": 0.5}}),
]
OPTIONS += [([f"--{entry.field}", entry.name], {entry.field: entry.name}) for entry in modifier_entries()]


@pytest.fixture
def written(files, monkeypatch):
    """Run ``lwptv merge`` with options and return what `save_merged` gets."""

    def run(*options):
        calls = []

        def save(vectors, recipe, path, overwrite, **costs):
            calls.append((recipe, costs))
            return save_merged(vectors, MergeRecipe(), path)  # what it says of itself is told

        monkeypatch.setattr(merging, "save_merged", save)
        run_merge(files, *options)
        return calls[0]

    return run


@pytest.mark.parametrize(("options", "fields"), OPTIONS, ids=lambda value: " ".join(value))
def test_options_are_the_recipes_fields(written, options, fields):
    assert written(*options)[0] == MergeRecipe(**fields)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--set", "calibrate.alpha=1"],
            "--set calibrate.alpha: the recipe has no calibrate; --calibrate gives it one",
        ),
        (["--calibrate", "svc", "--set", "calibrate.alhpa=1"], "unknown hyper-parameter of svc 'alhpa'. Did you mean"),
        (["--calibrate", "svc", "--set", "calibrat.alpha=1"], "'calibrat'. Did you mean 'calibrate'"),
        (["--calibrate", "scv"], "unknown calibration 'scv'. Did you mean 'svc'"),
        (["--calibrate", "svc", "--rule", "iso_c"], "iso_c"),
    ],
)
def test_what_is_wrong_of_a_modifier_is_told(files, options, told):
    with pytest.raises(SystemExit, match=re.escape(told)):
        run_merge(files, *options)


def test_every_field_has_an_option():
    given = {field for _, fields in OPTIONS for field in fields}
    of_gates = {"coefficients"}  # too many for words: they come in the file of --gates
    assert given | of_gates == {field.name for field in dataclasses.fields(MergeRecipe)}


def test_lines_of_a_file_are_changed_by_options(files, written):
    (files / "recipe.json").write_text(MergeRecipe(layer_scaling=LiNeS(alpha=0.5, beta=0.75)).to_json())
    recipe, _ = written("--recipe", str(files / "recipe.json"), "--lines-beta", "0.25")
    assert recipe == MergeRecipe(layer_scaling=LiNeS(alpha=0.5, beta=0.25))


def test_what_is_no_recipes_reaches_the_merge(files, written, monkeypatch):
    statistics = {"a": {}, "b": {}}
    monkeypatch.setattr(merging, "read_data_statistics", {files / "fisher": statistics}.get, raising=False)
    _, costs = written("--max-memory", "1KiB", "--device", "cpu", "--data-statistics", str(files / "fisher"))
    assert costs == {"device": "cpu", "max_memory": 1024, "data": statistics}
    _, costs = written("--max-shard-size", "5GB", "--format", "safetensors", "--keep-classifier", "--overwrite")
    assert costs == {"device": None, "max_shard_size": 5 * 10**9, "format": "safetensors", "keep_classifier": True}


@pytest.mark.parametrize("option", [["--format", "timm"], ["--keep-classifier"], ["--max-shard-size", "1GB"]])
def test_what_is_for_whole_models_is_not_for_an_adapter(option, files):
    with pytest.raises(SystemExit, match=rf"{option[0]} is for a whole model, and --as-lora writes an adapter"):
        run_merge(files, "--as-lora", "2", *option, out="adapter")


def test_a_folder_is_written_and_replaced_only_when_that_is_said(files, capsys):
    out = run_merge(files, out="out")
    assert "into" in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {"README.md", "model.safetensors"}
    with pytest.raises(SystemExit, match="out exists; give another path or --overwrite"):
        run_merge(files, out="out")
    run_merge(files, "--overwrite", "--format", "dcp", out="out")
    assert ".metadata" in {file.name for file in out.iterdir()}
    with pytest.raises(SystemExit, match=r"Possible: --format 'safetensors'"):
        run_merge(files, "--format", "timm", out="other")


def test_help_shows_the_declared_ranges_and_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--ratio VALUE the fraction of layers to prune of each task vector, in [0, 1] (default: 0.0)" in shown
    assert "--granularity VALUE what a layer is: block, module, tensor (default: module)" in shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting"),
        ("[]", "a recipe must be a mapping"),
        ('{"ratio": "0.5"}', "ratio must be"),
        ('{"rule": {"nam": "ties"}}', "rule must be"),
        ('{"ration": 1}', "Did you mean 'ratio'"),
    ],
)
def test_a_wrong_recipes_file_is_named_in_one_line(files, text, words):
    (files / "recipe.json").write_text(text)
    with pytest.raises(SystemExit, match=f"^lwptv merge: {re.escape(str(files / 'recipe.json'))}: .*{words}") as stop:
        run_merge(files, "--recipe", str(files / "recipe.json"))
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rule", "tiess"], "Did you mean 'ties'"),
        (["--ratio", "50"], "--ratio must lie in .* not percent"),
        (["--granularity", "modul"], "unknown --granularity 'modul'. Did you mean 'module'"),
        (["--elements", "2"], "the ratio of --elements must lie in"),
        (["--lines-beta", "nan"], "--lines-beta must be finite"),
        (["--max-memory", "much"], "--max-memory must be a number of bytes"),
        (["--task", "a"], "merges all tasks into one model"),
        (["--score", "mean_as"], "Did you mean 'mean_abs'"),
        (["--set", "density"], "NAME=VALUE"),
        (["--rule", "ties", "--set", "densty=0.1"], "Did you mean 'density'"),
        (["--exclude", "nothing.*"], "exclude pattern"),
    ],
)
def test_bad_input_ends_with_one_line_and_no_file(files, options, words):
    with pytest.raises(SystemExit, match=words) as stop:
        run_merge(files, *options, out="bad.safetensors")
    assert "\n" not in str(stop.value)
    assert not (files / "bad.safetensors").exists()


def test_merge_does_not_replace_a_file_unasked(files):
    path = run_merge(files)
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="--overwrite"):
        run_merge(files, "--scale", "2")
    assert path.read_bytes() == before
    run_merge(files, "--scale", "2", "--overwrite")
    assert path.read_bytes() != before


def test_a_missing_checkpoint_is_named(files):
    with pytest.raises(SystemExit, match=r"no checkpoint at .*absent\.pt"):
        main(
            [
                "merge",
                str(files / "base.safetensors"),
                f"a={files / 'absent.pt'}",
                "--out",
                str(files / "x.safetensors"),
            ]
        )


def test_heads_are_written_beside_the_merged_model(tmp_path, make_vit, fine_tuned, capsys):
    base, tasks = make_vit(num_classes=10), []
    torch.save(base.state_dict(), tmp_path / "base.pt")
    options = ["--model", "vit_tiny_patch16_224", "--model-option", "img_size=32", "--model-option", "depth=2"]
    options += ["--model-option", "embed_dim=48", "--model-option", "num_heads=3", "--model-option", "num_classes=10"]
    for task, classes in {"a": 3, "b": 5}.items():
        own = {name: value for name, value in make_vit(num_classes=classes).state_dict().items() if "head" in name}
        torch.save(fine_tuned(base.state_dict(), classes) | own, tmp_path / f"{task}.pt")
        tasks.append(f"{task}={tmp_path / f'{task}.pt'}")
    main(["merge", str(tmp_path / "base.pt"), *tasks, "--out", str(tmp_path / "m.safetensors"), "--heads", *options])
    assert f"The heads of a, b are in {tmp_path / 'm.heads.safetensors'}" in capsys.readouterr().out
    heads = load_file(tmp_path / "m.heads.safetensors")
    assert {name: tuple(value.shape) for name, value in heads.items() if "weight" in name} == {
        "a/head.weight": (3, 48),
        "b/head.weight": (5, 48),
    }
    assert torch.equal(heads["b/head.weight"], torch.load(tmp_path / "b.pt")["head.weight"])
    for given, message in (
        ([*tasks, "--heads"], "--heads needs --model"),
        ([tasks[0].replace("a.pt", "same.pt"), "--heads", *options], "classifiers of one shape, which are merged"),
    ):
        torch.save(fine_tuned(base.state_dict(), 1), tmp_path / "same.pt")
        exclude = ["--exclude", "head.*"] if "--model" not in given else []
        with pytest.raises(SystemExit, match=message):
            main(["merge", str(tmp_path / "base.pt"), *given, *exclude, "--out", str(tmp_path / "n.safetensors")])
        assert not (tmp_path / "n.safetensors").exists()


def gates_of(files, **changes):
    coefficients = {"a": {"*": 0.25}, "b": {"head": 0.0, "*": 1 / 3}}
    recipe = MergeRecipe("tsv_m", 1.0, prune_on="parts", coefficients=coefficients).replace(**changes)
    (files / "gates.json").write_text(recipe.to_json())
    return recipe


def test_gates_are_a_recipe_whose_scale_may_change(files, base_state, task_states, capsys):
    recipe = gates_of(files)
    path = run_merge(files, "--gates", str(files / "gates.json"), "--scale", "0.8")
    assert "tsv_m x 0.8, coefficients" in capsys.readouterr().out
    assert recipe_of(path) == recipe.replace(scale=0.8)
    vectors = TaskVectors.open(base_state, {task: task_states[task] for task in "ab"})
    expected, merged = merge(vectors, recipe.replace(scale=0.8)), load_file(path)
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
    main(["verify", str(path), str(files / "base.safetensors"), f"a={files / 'a.pt'}", f"b={files / 'b.safetensors'}"])


@pytest.mark.parametrize(
    "beside",
    [
        ["--rule", "ties"],
        ["--ratio", "0.5"],
        ["--ratio", "0"],
        ["--set", "density=0.5"],
        ["--keep", "stem"],
        ["--granularity", "block"],
        ["--prune-on", "task_vectors"],
        ["--elements", "0.5"],
        ["--recipe", "other.json"],
    ],
    ids=lambda words: words[0],
)
def test_gates_refuse_what_contradicts_them(files, beside):
    gates_of(files)
    with pytest.raises(SystemExit, match=f"{beside[0]} cannot stand beside it"):
        run_merge(files, "--gates", str(files / "gates.json"), *beside)


def test_gates_without_coefficients_and_of_other_tasks_are_refused_by_name(files):
    gates_of(files, coefficients=None)
    with pytest.raises(SystemExit, match="gates.json: the recipe there holds no coefficients"):
        run_merge(files, "--gates", str(files / "gates.json"))
    gates_of(files, coefficients={"a": {"*": 1}, "bb": {"*": 1}})
    with pytest.raises(SystemExit, match="unknown task in coefficients 'bb'. Did you mean 'b'"):
        run_merge(files, "--gates", str(files / "gates.json"))
    assert not (files / "merged.safetensors").exists()

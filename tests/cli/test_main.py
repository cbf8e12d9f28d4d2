"""The command line, run in this process where that is enough."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.cli.main import main


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
    with safe_open(path, "pt") as handle:
        assert MergeRecipe.from_json(handle.metadata()["lwptv_recipe"]) == recipe


def test_merge_reads_a_recipe_and_lets_options_change_it(files):
    (files / "recipe.json").write_text(MergeRecipe("ties", 0.2, ratio=0.5).to_json())
    path = run_merge(files, "--recipe", str(files / "recipe.json"), "--scale", "0.9")
    with safe_open(path, "pt") as handle:
        recipe = MergeRecipe.from_json(handle.metadata()["lwptv_recipe"])
    assert recipe == MergeRecipe("ties", 0.9, ratio=0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rule", "tiess"], "Did you mean 'ties'"),
        (["--ratio", "50"], "not percent"),
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


def test_scores_are_listed(capsys):
    main(["scores"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mean_abs ")
    assert all(len(line.split()) > 2 for line in lines)


LIGHT = ("demo", "merge", "check", "diff", "rules", "scores", "zoo")  # `validate` asks Lightning for its options


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command, "--help"] for command in LIGHT)], ids=str)
def test_help_loads_neither_torch_nor_lightning(arguments):
    script = (
        "import sys\nfrom lwptv_lightning.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(sorted({'torch', 'lightning', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_runs_as_a_script():
    command = [sys.executable, "-m", "lwptv_lightning", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("lwptv-lightning ")


def test_validate_runs_a_configuration(tmp_path, monkeypatch, capsys):
    from pathlib import Path

    configuration = (Path(__file__).parents[2] / "examples" / "demo.yaml").read_text()
    (tmp_path / "demo.yaml").write_text(configuration.replace("size: 150", "size: 20").replace("auto", "cpu"))
    monkeypatch.chdir(tmp_path)
    main(["validate", "--config", "demo.yaml", "--trainer.enable_progress_bar=false"])
    recipe = json.loads((tmp_path / "lwptv_validate" / "recipe.json").read_text())
    assert (recipe["rule"]["name"], recipe["scale"], recipe["ratio"]) == ("task_arithmetic", 0.3, 0.5)
    assert "task_arithmetic x 0.3, mean_abs 0.5" in (tmp_path / "lwptv_validate" / "report.md").read_text()
    assert (tmp_path / "lwptv_validate" / "saliency.png").exists()

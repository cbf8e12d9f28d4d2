import pytest
import yaml

from lwptv_lightning.cli.configuration import (
    Given,
    merged,
    nearest_below,
    parse,
    printed,
    put,
    read_arguments,
    require_options,
    value_of,
)
from lwptv_lightning.registry import ConfigurationError


def test_options_go_over_files_and_later_files_over_earlier_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("recipe: ties\ndata: {batch_size: 4, num_workers: 1}\nsave: x\n")
    (tmp_path / "b.yaml").write_text("data: {batch_size: 5}\n")
    given = read_arguments(["--config", "a.yaml", "--recipe.ratio=0.5", "--config=b.yaml", "--data.num_workers", "0"])
    assert given.values == {
        "recipe": {"rule": "ties", "ratio": 0.5},
        "data": {"batch_size": 5, "num_workers": 0},
        "save": "x",
    }
    assert given.files == ["a.yaml", "b.yaml"]


def test_other_options_are_left_to_the_parser():
    words = ["--trainer.max_steps", "5", "--tasks.a b", "x", "--out=y"]
    given = read_arguments(["--trainer.max_steps", "5", "--tasks.a", "x y.pt", "--out=y", "--print_config"])
    assert given == Given({"tasks": {"a": "x y.pt"}}, [words[0], words[1], words[-1]], [], True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: no", {"a": "no"}),
        ("a: 1e-3", {"a": 0.001}),
        ("a: 00:00:01", {"a": "00:00:01"}),
        ("1: [true, null, 07, .5, -3]", {"1": [True, None, "07", 0.5, -3]}),
        ("x: &x {a: 1}\ny: {<<: *x, b: 2}", {"x": {"a": 1}, "y": {"a": 1, "b": 2}}),
        ("no: 2024-01-01", {"no": "2024-01-01"}),
    ],
)
def test_yaml_means_what_it_says(text, value):
    assert parse(text, "c.yaml") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: 1", "'c.yaml', line 1: "),
        ("a: 1\n\tb: 2", "'c.yaml', line 2: .*Tabs cannot indent"),
        ("a: 1\nb: 2\na: 3", "'c.yaml', line 3: the key 'a' stands here twice"),
        ("a: !!python/object:os.system 1", "'c.yaml', line 1: could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(text, message):
    with pytest.raises(ConfigurationError, match=message):
        parse(text, "c.yaml")


FILES = {
    "missing": (None, "there is no file 'suit.yaml'. Did you mean 'suite.yaml'"),
    "empty": ("# nothing\n", "'suit.yaml' is empty"),
    "a list": ("[1]", "'suit.yaml' must be a mapping"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_says_nothing_is_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, message = FILES[case]
    (tmp_path / "suite.yaml").touch()
    if text is not None:
        (tmp_path / "suit.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_arguments(["--config", "suit.yaml"])


def test_bytes_folders_and_lacking_names_are_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    for words, message in {
        ("--config", str(tmp_path)): "is a folder",
        ("--config", str(tmp_path / "x.yaml")): "is no text",
        ("--config",): "expected one argument",
        ("--base",): "--base: expected one argument",
        ("--tasks", "{a: "): "--tasks: .*is no YAML",
    }.items():
        with pytest.raises(ConfigurationError, match=message):
            read_arguments(words)


def test_what_stands_in_the_way_of_a_key_is_opened_or_named(tmp_path):
    (tmp_path / "r.json").write_text('{"rule": "dare", "scale": 0.5}')
    values = {"recipe": str(tmp_path / "r.json"), "base": "b.pt", "model": "resnet18"}
    put(values, ["recipe", "rule", "density"], 0.1, "")
    assert values["recipe"] == {"rule": {"name": "dare", "density": 0.1}, "scale": 0.5}
    put(values, ["model", "init_args", "recipe", "ratio"], 0.5, "")  # where the older form has it
    assert values["recipe"]["ratio"] == 0.5
    with pytest.raises(ConfigurationError, match="base.x: base is 'b.pt', which has no keys"):
        put(values, ["base", "x"], 1, "")
    values = {"recipe": {"rule": "ties", "calibrate": "svc"}}
    put(values, ["recipe", "calibrate", "alpha"], 0.1, "")
    put(values, ["recipe", "subspace", "name"], "knots", "")
    assert values["recipe"]["calibrate"] == {"name": "svc", "alpha": 0.1}
    assert values["recipe"]["subspace"] == {"name": "knots"}
    values = {"data": {"class_path": "a.B"}}
    put(values, ["data", "size"], 3, "")
    assert values["data"] == {"class_path": "a.B", "init_args": {"size": 3}}
    values = {"model": "resnet18", "data": {"id": {"a.b": "images/a"}, "ood": {"far/c": "images/c"}}}
    put(values, ["model", "class_path"], "m.M", "")
    put(values, ["data", "id", "a", "b", "classes"], ["x", "y"], "")
    put(values, ["data", "ood", "far/c", "class_path"], "m.D", "")
    assert values == {
        "model": {"class_path": "m.M"},
        "data": {
            "id": {"a.b": {"dataset": "images/a", "classes": ["x", "y"]}},
            "ood": {"far/c": {"class_path": "m.D"}},
        },
    }


def test_names_may_hold_dots():
    values = {"data": {"id": {"a.b": {"dataset": "x"}}}}
    put(values, ["tasks", "a", "b"], "a.pt", "")
    put(values, ["data", "id", "a", "b", "split"], "train", "")
    assert values == {"data": {"id": {"a.b": {"dataset": "x", "split": "train"}}}, "tasks": {"a.b": "a.pt"}}


def test_another_class_does_not_get_the_arguments_of_the_first():
    first = {"data": {"class_path": "a.A", "init_args": {"x": 1}}, "tasks": {"a": "1"}}
    assert merged(first, {"data": {"class_path": "a.B"}, "tasks": {"b": "2"}}) == {
        "data": {"class_path": "a.B"},
        "tasks": {"a": "1", "b": "2"},
    }


def test_paths_in_options_are_texts():
    assert value_of(["tasks", "a"], "1e3") == "1e3"
    assert value_of(["data", "id", "a"], "yes: no") == "yes: no"
    assert value_of(["recipe", "scale"], "1e3") == 1000.0
    assert value_of(["data", "ood", "a"], "null") is None


def test_unknown_options_are_told_with_the_nearest():
    for word, message in {
        "--trainr.max_steps=3": r"^unrecognized arguments: --trainr.max_steps=3. Did you mean '--trainer'",
        "--trainer.max_step": "--trainer.max_step: unknown option. Did you mean 'max_steps'",
    }.items():
        with pytest.raises(ConfigurationError, match=message):
            require_options([word], ["trainer", "out"], lambda section: ["max_steps"])
    require_options(
        ["--trainer.callbacks+=X", "--out", "x", "--help"], ["trainer", "out"], lambda section: ["callbacks"]
    )
    assert nearest_below("data", "btach", ["batch", "x"]) == " Did you mean 'data.batch'?"


def test_what_is_printed_reads_back_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = printed(
        "validate", {"base": "b.pt", "model": "resnet18"}, "trainer: {max_steps: 3}\nlearn: {}\nbase: null\n"
    )
    assert yaml.safe_load(text) == {
        "model": "resnet18",
        "base": str(tmp_path / "b.pt"),
        "trainer": {"max_steps": 3},
    }

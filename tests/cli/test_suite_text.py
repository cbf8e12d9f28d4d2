from pathlib import Path

import pytest
import yaml

from lwptv_lightning.cli.found_architecture import FoundModel
from lwptv_lightning.cli.found_data import FoundData
from lwptv_lightning.cli.found_models import FoundModels
from lwptv_lightning.cli.found_sets import FoundSet
from lwptv_lightning.cli.suite_text import said_of, suite_text

ODD = ["no", "1e3", "a: b", "#x", "été 中", '"q"', "tab\tx", "-", "null", "~x", "{x}", "hf", "\x85"]


def images(path):
    return FoundSet(Path("/own") / path, (path,), "", "", "", ("a",))


@pytest.mark.parametrize("name", ODD)
def test_names_of_all_kinds_read_back(name, tmp_path):
    from lwptv_lightning.cli.configuration import parse

    models = FoundModels(
        Path("/own/base.pt"), {name: Path("/own") / name}, {}, {Path("/own/x.pt"): "broken\nfile"}, "by its name"
    )
    data = FoundData({name: images(name)}, heads={"x": name, "y": Path("/own") / name})
    data.left_out["/own/z"] = (images("z"), "no\nhead")
    text = suite_text(models, FoundModel("resnet18", {"in_chans": 1, "flag": True}), data, {}, Path("/own"))
    found = parse(text, "suite.yaml")
    assert list(found["tasks"]) == list(found["data"]["id"]) == [name]
    assert Path("/own", found["tasks"][name]) == Path("/own") / name
    assert found["heads"]["x"] == name
    assert found["model_arguments"] == {"in_chans": 1, "flag": True}
    assert "z: z # left out: no\\nhead" in text


def test_names_of_libraries_and_other_folders_stay_paths():
    models = FoundModels(Path("/own/torch/base.pt"), {"a": Path("/elsewhere/a.pt")}, {})
    found = yaml.safe_load(suite_text(models, FoundModel("x"), FoundData(), {}, Path("/own")))
    assert (found["base"], found["tasks"]["a"]) == ("./torch/base.pt", "../elsewhere/a.pt")
    assert "data" not in found


def test_what_was_found_is_said_in_few_lines():
    models = FoundModels(
        Path("/own/base.pt"), {"a": Path("/a"), "b": Path("/b")}, {}, {Path("/x"): "/x: broken"}, "by its name"
    )
    said = said_of(models, FoundModel("resnet18", why="by its tensors"), FoundData({"a": images("a")}), Path("s.yaml"))
    assert said[:4] == [
        "Model: resnet18 (by its tensors)",
        "Base: base.pt (by its name); tasks: a, b",
        "Sets: ID a; OOD none; validation none",
        "No images of b: of these tasks nothing is measured.",
    ]
    assert said[4].endswith("/x: broken")
    assert said[-1] == "Written to s.yaml; next: lwptv tune --config s.yaml"

from lwptv_lightning.cli.paths import from_here, is_old, seen_from_here


def test_paths_are_relative_to_their_file(tmp_path):
    (tmp_path / "own").mkdir()
    values = {
        "model": "resnet18",
        "base": "models/ba se.pt",
        "tasks": {"a": "a.pt", "b": "hf-hub:owner/b", "c": "/c.pt"},
        "heads": {"x": "a", "y": "./y.pt", "z": "no_such_set"},
        "recipe": "r.json",
        "recipes": {"one": "ties", "two": "two.json"},
        "data": {
            "id": {"a": "images/a", "b": "torchvision/SVHN", "c": {"dataset": "torch/cifar10", "split": "train"}},
            "ood": {"d": {"class_path": "x.Y", "init_args": {"root": "z"}}, "e": "hf/owner/name", "f": "hf/own"},
        },
    }
    folder = str(tmp_path)
    found = seen_from_here(values, folder)
    assert found["base"] == f"{folder}/models/ba se.pt"
    assert found["tasks"] == {"a": f"{folder}/a.pt", "b": "hf-hub:owner/b", "c": "/c.pt"}
    assert found["heads"] == {"x": "a", "y": f"{folder}/y.pt", "z": "no_such_set"}
    assert (found["recipe"], found["recipes"]) == (f"{folder}/r.json", {"one": "ties", "two": f"{folder}/two.json"})
    assert found["data"] == {
        "id": {
            "a": f"{folder}/images/a",
            "b": {"dataset": "torchvision/SVHN", "root": f"{folder}/data"},
            "c": {"dataset": "torch/cifar10", "split": "train", "root": f"{folder}/data"},
        },
        "ood": values["data"]["ood"] | {"f": f"hf/{folder}/own"},
    }
    assert from_here("~/x", folder) == "~/x"
    assert values["base"] == "models/ba se.pt"  # as it was


def test_the_older_form_has_paths_of_its_own():
    values = {"model": {"class_path": "lwptv_lightning.validate.timm_module"}, "base": "b.pt"}
    assert seen_from_here(values, "/elsewhere") == values
    assert is_old(values["model"])
    assert not is_old({"class_path": "torchvision.models.resnet18"})
    assert not is_old({"class_path": "no.such.thing"})

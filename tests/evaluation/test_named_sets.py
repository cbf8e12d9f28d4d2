import sys
from types import SimpleNamespace

import pytest
from _helpers.own_suite import write_images
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from lwptv_lightning.evaluation import named_set
from lwptv_lightning.evaluation.named_sets import is_library_name
from lwptv_lightning.registry import ConfigurationError


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "pets", ["cat", "dog"])
    return tmp_path / "pets"


def labels(data):
    return [data[place][1] for place in range(len(data))]


def test_a_folder_is_a_set(folder):
    for value in (str(folder), folder, {"dataset": str(folder)}, {"root": str(folder)}):
        found = named_set("data.id.a", value)
        assert (found.classes, found.is_folder, labels(found.data)) == (("cat", "dog"), True, [0, 0, 1, 1])


def test_classes_may_be_named_in_the_heads_order(folder):
    found = named_set("k", {"dataset": str(folder), "classes": ["dog", "ant", "cat"]})
    assert (found.classes, labels(found.data)) == (("dog", "ant", "cat"), [2, 2, 0, 0])


def test_torchvision_and_timm_name_data_sets(folder):
    fake = named_set("k", {"dataset": "torchvision/fakedata", "size": 3, "image_size": [3, 8, 8], "num_classes": 4})
    assert len(fake.data) == 3
    assert isinstance(fake.data[0][0], Image.Image)
    found = named_set("k", {"dataset": "torch/image_folder", "root": str(folder), "split": ""})
    assert (found.classes, len(found.data)) == (("cat", "dog"), 4)


def test_a_class_of_ones_own_is_a_set():
    value = {"class_path": "torchvision.datasets.FakeData", "init_args": {"size": 2}}
    assert len(named_set("k", value).data) == 2
    data = TensorDataset()
    assert named_set("k", data).data is data


class Columns(list):
    features: dict


@pytest.fixture
def hugging_face(monkeypatch):
    """A stand-in for the library: names of kinds of columns, and one data set."""

    class Picture:
        pass

    class ClassLabel:
        names = ("cat", "dog")

    rows = Columns([{"img": Image.new("RGB", (4, 4)), "y": 1, "id": 7}])
    rows.features = {"img": Picture(), "y": ClassLabel(), "id": object()}
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        if options["split"] != "test":
            raise ValueError("Unknown split.\nShould be one of ...")
        return rows

    library = SimpleNamespace(
        Image=Picture, ClassLabel=ClassLabel, load_dataset=load_dataset, load_from_disk=lambda path: {"test": rows}
    )
    monkeypatch.setitem(sys.modules, "datasets", library)
    return asked


def test_hugging_face_names_data_sets(hugging_face, tmp_path):
    found = named_set("k", "hf/owner/name")
    assert (found.classes, labels(found.data)) == (("cat", "dog"), [1])
    assert hugging_face == [("owner/name", {"split": "test"})]
    assert labels(named_set("k", {"dataset": "hf/owner/name", "label": "id"}).data) == [7]
    assert len(named_set("k", f"hf/{tmp_path}").data) == 1
    for value, message in {
        ("split", "train"): "k: hf/owner/name cannot be opened: Unknown split",
        ("label", "yy"): "k.label: which column .* cannot be known: say one of img, y, id. Did you mean 'y'",
    }.items():
        with pytest.raises(ConfigurationError, match=message):
            named_set("k", {"dataset": "hf/owner/name", value[0]: value[1]})
    with pytest.raises(ConfigurationError, match="k.split: .* has no 'tets'. Did you mean 'test'"):
        named_set("k", {"dataset": f"hf/{tmp_path}", "split": "tets"})


def test_a_library_that_lacks_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("hf/owner/name", "hfds/owner/name"):
        with pytest.raises(ConfigurationError, match="needs Hugging Face's 'datasets'.* pip install"):
            named_set("k", name)


def wrong(folder):
    (folder / "empty" / "x").mkdir(parents=True)
    (folder / "flat").mkdir()
    (folder / "file").touch()
    return {
        "missing": (str(folder.parent / "pest"), "k: .*pest': there is no such folder. Did you mean 'pets'"),
        "far": (str(folder / "a" / "b"), "k: .*there is no such folder. .*pets' has no 'a'"),
        "a file": (str(folder / "file"), "k: .*is no folder"),
        "no classes": (str(folder / "flat"), "k: .*has no sub-folders, expected one for each class"),
        "no images": (str(folder / "empty"), "k: .*Found no valid file for the classes x"),
        "a key": ({"dataset": str(folder), "clases": []}, "k.clases: unknown key.*'classes'"),
        "classes": (
            {"dataset": str(folder), "classes": ["cat"]},
            "k: .*has a folder 'dog', which is none of 'classes'",
        ),
        "twice": ({"dataset": str(folder), "classes": ["cat", "cat"]}, "k.classes: expected the names"),
        "a number": (3, "k: expected a folder of images"),
        "no name": ({"split": "test"}, "k: expected a folder of images.*there is no 'dataset'"),
        "torchvision": ("torchvision/SVNH", "k: torchvision has no data set 'SVNH'. Did you mean 'SVHN'"),
        "not there": (
            {"dataset": "torchvision/SVHN", "root": str(folder)},
            "k: torchvision/SVHN cannot be opened: .*download",
        ),
        "an argument": (
            {"dataset": "torchvision/SVHN", "rot": "x"},
            "k.rot: SVHN takes no such argument. Did you mean 'root'",
        ),
        "timm": (
            {"dataset": "torch/cifar11", "root": str(folder)},
            "k: torch/cifar11 cannot be opened: Unknown torchvision",
        ),
        "no data set": ({"class_path": "torch.nn.ReLU"}, "k: torch.nn.ReLU makes a ReLU, expected a data set"),
    }


def test_what_cannot_be_opened_is_told_with_its_key(folder):
    for value, message in wrong(folder).values():
        with pytest.raises(ConfigurationError, match=message):
            named_set("k", value)


def test_names_of_libraries_are_told_from_paths():
    assert is_library_name("torchvision/SVHN")
    assert not is_library_name("./torchvision/SVHN")
    assert not is_library_name(Dataset)

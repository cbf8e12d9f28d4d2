import pytest
import yaml
from _helpers.own_suite import write_images, write_suite

from lwptv_lightning.evaluation import files_module, image_suite
from lwptv_lightning.registry import ConfigurationError


@pytest.fixture
def module(tmp_path, monkeypatch):
    import timm

    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(write_suite(tmp_path).read_text())
    return files_module(timm.create_model("test_resnet"), values["base"], values["tasks"], heads=values["heads"])


ID = {"cats": "images/test/cats", "cars": "images/test/cars"}


def labels(loader):
    return [label for _, labels in loader for label in labels.tolist()]


def test_sets_are_prepared_and_numbered(module):
    suite = image_suite(module, ID, {"cats_drawn": "images/ood/cats_drawn"}, {"cats": "images/val/cats"}, batch_size=4)
    assert labels(suite.loaders["ood/cats_drawn"]) == [0, 0, 0, 2, 2, 2]
    assert labels(suite.validation["id/cats"]) == [0, 0, 1, 1, 2, 2]
    images, _ = next(iter(suite.loaders["id/cars"]))
    assert images.shape == (4, 3, 160, 160)
    assert suite.notes == ()


def test_workers_give_the_same(module):
    one, two = (image_suite(module, ID, num_workers=workers).loaders["id/cats"] for workers in (0, 1))
    assert labels(one) == labels(two)


def test_what_the_head_cannot_judge_is_refused(module, tmp_path):
    write_images(tmp_path / "many", [f"cats_{place}" for place in range(5)])
    with pytest.raises(ConfigurationError, match="data.id.cats: 5 classes, and the head of 'cats' has 3 logits"):
        image_suite(module, ID | {"cats": "many"})
    with pytest.raises(ConfigurationError, match="data.ood.cats_drawn: the class 'cats_3' and 1 more .*'cats'"):
        image_suite(module, ID, {"cats_drawn": "many"})


def test_a_set_that_no_head_judges_is_refused(module):
    with pytest.raises(
        ConfigurationError, match="data.ood.far/drawn: no head judges this set; say heads: {drawn: <task>}"
    ):
        image_suite(module, ID, {"far/drawn": "images/ood/cats_drawn"})


def test_a_class_without_a_folder_is_said(module, tmp_path):
    write_images(tmp_path / "few", ["cats_0", "cats_2"])
    (note,) = image_suite(module, ID | {"cats": "few"}).notes
    assert "data.id.cats: 2 classes, and the head of 'cats' has 3 logits" in note
    named = {"dataset": "few", "classes": ["cats_0", "cats_1", "cats_2"]}
    suite = image_suite(module, ID | {"cats": named})
    assert suite.notes == ()
    assert labels(suite.loaders["id/cats"]) == [0, 0, 2, 2]


def test_validation_is_of_id_sets(module):
    with pytest.raises(
        ConfigurationError, match="data.validation.cat: there is no ID set of this name. Did you mean 'cats'"
    ):
        image_suite(module, ID, validation={"cat": "images/val/cats"})


def test_what_is_null_is_left_out_and_a_name_is_refused_by_its_key(module):
    assert list(image_suite(module, ID | {"cars": None}).loaders) == ["id/cats"]
    with pytest.raises(ConfigurationError, match="^data.ood.avg: .*'avg' is taken"):
        image_suite(module, ID, {"avg": "images/ood/cats_drawn"})

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import Gates
from lwptv_lightning.search.portions import count_of
from lwptv_lightning.search.prepared import LEARNT_ON, Prepared


@pytest.fixture
def module(vit, vit_vectors):
    return MergeModule(vit, vit_vectors, heads={name: nn.Linear(48, 4) for name in ("a", "b", "far")})


def loader(size):
    return DataLoader(TensorDataset(torch.randn(size, 3, 32, 32), torch.randint(4, (size,))), batch_size=6)


class Untouched:
    """A loader that nobody may look into."""

    def __iter__(self):
        raise AssertionError("looked into")

    __len__ = __getitem__ = __iter__

    @property
    def dataset(self):
        raise AssertionError("looked into")


def prepared(module, validation, test, *, space=None, samples=None, recalibrate=None, **options):
    return Prepared.of(module, validation, test, space, samples, recalibrate, 0, options)


def test_samples_to_learn_on_are_set_apart_where_there_are_enough(module):
    validation = {"id/a": loader(60), "id/b": loader(300)}
    found = prepared(module, validation, {"id/a": loader(5), "ood/far": loader(5)})
    learnt = [entry.candidate for entry in found.pool.values() if isinstance(entry.candidate, Gates)]
    assert learnt
    assert {name: count_of(each) for name, each in found.samples.items()} == {"id/a": 20, "id/b": LEARNT_ON}
    assert {name: count_of(each) for name, each in found.validation.items()} == {"id/a": 40, "id/b": 300 - LEARNT_ON}
    assert "20 to 64 validation samples of each ID set were set apart" in found.notes[0]


def test_few_samples_choose_and_nothing_is_learnt_on_them(module):
    validation = {"id/a": loader(20), "id/b": loader(20)}
    found = prepared(module, validation, {"id/a": loader(5)})
    assert not any(isinstance(entry.candidate, Gates) for entry in found.pool.values())
    assert found.validation == validation
    assert found.samples is None
    assert "No coefficients were learnt: 'id/a' has too few validation samples" in found.notes[0]
    with pytest.raises(ValueError, match=r"gates=\['tsv_m'\]: 'id/a' has too few"):
        prepared(module, validation, {"id/a": loader(5)}, space={"gates": True})
    with pytest.raises(ValueError, match="gram need samples to learn on"):
        prepared(module, validation, {"id/a": loader(5)}, space={"rules": ["regmean"]})


def test_samples_that_are_given_leave_validation_whole(module):
    validation, samples = ({name: loader(20) for name in ("id/a", "id/b")} for _ in range(2))
    found = prepared(module, validation, {"id/a": loader(5)}, samples=samples)
    assert any(isinstance(entry.candidate, Gates) for entry in found.pool.values())
    assert (found.validation, found.samples) == (validation, samples)


def test_a_task_without_samples_has_no_gates(module):
    found = prepared(module, {"id/a": loader(100)}, {"id/a": loader(5)})
    assert "each task needs one set of its own to learn on, and there are 'id/a'" in found.notes[0]


def test_no_test_loader_is_looked_into(module):
    test = {"id/a": Untouched(), "ood/far": Untouched()}
    validation = {"id/a": loader(20), "id/b": loader(20)}
    assert prepared(module, validation, test).test == test


def test_without_validation_each_id_set_is_halved_and_no_ood_set_is_looked_into(module):
    test = {"id/a": loader(21), "ood/far": Untouched(), "id/b": loader(8)}
    found = prepared(module, None, test)
    assert {name: count_of(each) for name, each in found.validation.items()} == {"id/a": 10, "id/b": 4}
    assert list(found.test) == list(test)
    assert (count_of(found.test["id/a"]), found.test["ood/far"]) == (11, test["ood/far"])
    assert found.halved
    assert "each ID set was divided in two at random (seed 0)" in found.notes[0]
    assert prepared(module, {}, test).halved


@pytest.mark.parametrize(
    ("validation", "test", "told"),
    [
        (None, {"ood/far": 5}, "there is no ID set to choose by"),
        (None, {"id/a": 8, "id/b": 3}, "'id/b' has 3 samples, and a choice takes 4 or more"),
        ({"id/a": 3, "id/b": 8}, {"id/a": 5}, "'id/a' has 3 samples, and a choice takes 4 or more"),
        ({"ood/far": 9}, {"id/a": 5}, "validation holds 'ood/far': choices are made on ID sets alone"),
        ({"a": 9}, {"id/a": 5}, "loader 'a' must be named"),
        ({"id/a": 9}, {"a": 5}, "loader 'a' must be named"),
        ({"id/a": 9}, {}, "test must be a dict"),
        ({"id/a": 9}, {"ood/unknown": 5}, "unknown"),
    ],
)
def test_wrong_sets_are_named(module, validation, test, told):
    def made(sizes):
        return None if sizes is None else {name: loader(size) for name, size in sizes.items()}

    with pytest.raises((ValueError, TypeError), match=told):
        prepared(module, made(validation), made(test))


def test_what_chooses_must_not_be_reported(module):
    shared = loader(20)
    other = DataLoader(shared.dataset, batch_size=3, shuffle=True)
    for given in (shared, other):
        with pytest.raises(ValueError, match="validation 'id/a' and test 'id/b' are the same samples"):
            prepared(module, {"id/a": shared}, {"id/b": given})


def test_a_data_set_is_no_loader_and_an_argument_has_its_nearest(module):
    with pytest.raises(ValueError, match="test: 'id/a' is a data set"):
        prepared(module, {"id/a": loader(9)}, {"id/a": loader(9).dataset})
    with pytest.raises(UnknownNameError, match="argument of a search space 'rulez'. Did you mean 'rules'"):
        prepared(module, {"id/a": loader(9)}, {"id/a": loader(9)}, space={"rulez": ["ties"]})


def test_a_model_without_running_statistics_is_not_recalibrated(module):
    assert not prepared(module, {"id/a": loader(9)}, {"id/a": loader(9)}, recalibrate=True).recalibrate

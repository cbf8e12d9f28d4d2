import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from lwptv_lightning.search.portions import (
    Shares,
    count_of,
    divided,
    drawn,
    halves,
    mixed,
    positions_of,
    require_enough,
)


def loader(size, **options):
    return DataLoader(TensorDataset(torch.arange(size), torch.zeros(size).long()), batch_size=4, **options)


def seen(loader):
    return [int(each) for batch, _ in loader for each in batch]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(5))


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"sampler": SubsetRandomSampler(range(3, 9))}])
def test_samples_are_told_of_what_deals_them_out_one_by_one(options):
    given = loader(10, **options)
    assert sorted(positions_of(given)) == sorted(seen(given))
    some, rest = divided({"id/a": given}, {"id/a": 4}, 0)
    assert len(seen(some["id/a"])) == 4
    assert sorted([*seen(some["id/a"]), *seen(rest["id/a"])]) == sorted(seen(given))


@pytest.mark.parametrize(
    "given",
    [
        DataLoader(Stream(), batch_size=2),
        loader(10, sampler=WeightedRandomSampler([1.0] * 10, 10)),
        [torch.zeros(2, 3)],
        DataLoader(TensorDataset(torch.zeros(4)), batch_size=None),
    ],
)
def test_what_cannot_be_divided_is_named(given):
    assert positions_of(given) is None
    with pytest.raises(ValueError, match="loader 'id/a' cannot be divided"):
        drawn("id/a", given, 0)
    assert Shares({"id/a": given, "id/b": loader(4)}).undivided == ["id/a"]
    assert Shares({"id/a": given}).loaders(1) == {"id/a": given}


def test_halves_share_nothing_and_are_the_same_for_a_seed():
    given = {"id/a": loader(20, shuffle=True), "id/b": loader(7)}
    first, second = halves(given, 3)
    for name, whole in given.items():
        assert not set(seen(first[name])) & set(seen(second[name]))
        assert sorted(seen(first[name]) + seen(second[name])) == list(range(len(whole.dataset)))
        assert seen(halves(given, 3)[0][name]) == seen(first[name])
        assert first[name].batch_size == 4
    assert seen(halves(given, 4)[0]["id/a"]) != seen(first["id/a"])


def test_samples_are_mixed_the_same_way_each_time():
    given = {"id/a": loader(20), "id/b": [torch.zeros(2)]}
    found = mixed(given, 0)
    assert sorted(seen(found["id/a"])) == seen(given["id/a"]) != seen(found["id/a"])
    assert seen(mixed(given, 0)["id/a"]) == seen(found["id/a"]) != seen(mixed(given, 1)["id/a"])
    assert found["id/b"] is given["id/b"]


def test_sets_with_too_few_samples_are_named():
    with pytest.raises(
        ValueError, match="^'id/b' has 3 samples, and a choice takes 4 or more of each set: no validation"
    ):
        halves({"id/a": loader(8), "id/b": loader(3)}, 0)
    require_enough({"id/a": loader(4), "id/c": [1, 2]}, "so")
    assert count_of([1, 2]) is None


def test_shares_grow_hold_each_other_and_are_the_same_for_all():
    shares = Shares({"id/a": loader(90), "id/b": loader(12)}, seed=1)
    parts = [1 / 9, 1 / 3, 1]
    found = [{name: set(seen(each)) for name, each in shares.loaders(part).items()} for part in parts]
    assert [len(each["id/a"]) for each in found] == [10, 30, 90]
    assert [len(each["id/b"]) for each in found] == [8, 8, 12]  # at least eight
    for name in ("id/a", "id/b"):
        assert found[0][name] <= found[1][name] <= found[2][name]
    assert [shares.cost(part) for part in parts] == [18 / 102, 38 / 102, 1]
    again = Shares({"id/a": loader(90), "id/b": loader(12)}, seed=1)
    assert seen(again.loaders(1 / 9)["id/a"]) == seen(shares.loaders(1 / 9)["id/a"])

"""Samples that choose are never reported, and that is told without a look at any."""

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset
from torchvision.datasets import FakeData, ImageFolder, VisionDataset

from lwptv_lightning.search.apart import require_apart


class Closed(Dataset):
    def __len__(self):
        raise AssertionError("its length was asked for")

    __getitem__ = __iter__ = __len__


def tensors(size=20):
    return TensorDataset(torch.zeros(size, 2), torch.zeros(size).long())


def drawn(data, places):
    return DataLoader(data, sampler=SubsetRandomSampler(list(places)))


SHARED = tensors()
PAIRS = {
    "the same": (DataLoader(SHARED), DataLoader(SHARED, shuffle=True), "are the same samples"),
    "a part of it": (DataLoader(Subset(SHARED, range(8))), DataLoader(SHARED), "have 8 samples in common"),
    "the whole of a part": (DataLoader(SHARED), DataLoader(Subset(SHARED, [3, 4])), "have 2 samples in common"),
    "parts": (DataLoader(Subset(SHARED, range(12))), DataLoader(Subset(SHARED, range(10, 20))), "have 2 samples in"),
    "samplers": (drawn(SHARED, range(12)), drawn(SHARED, range(11, 20)), "have 1 samples in common"),
    "a sampler of a part": (drawn(Subset(SHARED, range(10, 20)), [0]), DataLoader(Subset(SHARED, [10])), "have 1 sam"),
    "parts of parts": (
        DataLoader(Subset(Subset(SHARED, range(10, 20)), [0, 1])),
        DataLoader(Subset(SHARED, [11, 12])),
        "have 1 samples in common",
    ),
    "the same tensors": (DataLoader(SHARED), DataLoader(TensorDataset(*SHARED.tensors)), "are the same samples"),
}
OTHERS = {
    "parts": (DataLoader(Subset(SHARED, range(10))), DataLoader(Subset(SHARED, range(10, 20)))),
    "samplers": (drawn(SHARED, range(10)), drawn(SHARED, range(10, 20))),
    "other tensors": (DataLoader(tensors()), DataLoader(tensors())),
    "closed": (DataLoader(Closed()), DataLoader(Closed())),
    "a stream": ([1, 2], (each for each in [1, 2])),
}


@pytest.mark.parametrize("name", PAIRS)
def test_samples_in_common_are_refused_in_either_direction(name):
    one, other, told = PAIRS[name]
    for ours, theirs in ((one, other), (other, one)):
        with pytest.raises(ValueError, match=f"validation 'id/a' and test 'ood/x/b' {told}"):
            require_apart({"id/a": ours}, {"id/a": DataLoader(tensors()), "ood/x/b": theirs})


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_not_and_nothing_is_read(name):
    one, other = OTHERS[name]
    require_apart({"id/a": one}, {"id/a": other})


def test_folders_with_the_same_files_are_refused(tmp_path):
    for place in ("one/cat", "one/dog", "other/cat"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place / "0.png")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    one, other, link = (DataLoader(ImageFolder(tmp_path / name)) for name in ("one", "other", "link"))
    require_apart({"id/a": one}, {"id/a": other})
    with pytest.raises(ValueError, match="are the same samples"):
        require_apart({"id/a": one}, {"id/a": link})
    with pytest.raises(ValueError, match="have 1 samples in common"):
        require_apart({"id/a": DataLoader(Subset(one.dataset, [1]))}, {"id/a": link})


def test_a_librarys_set_opened_twice_is_the_same_and_one_of_ones_own_may_not_be(tmp_path):
    class Own(VisionDataset):
        def __len__(self):
            return 3

    fake = [FakeData(4, random_offset=offset) for offset in (0, 0, 9)]
    for each in fake:
        each.root = str(tmp_path)
    one, same, other = map(DataLoader, fake)
    require_apart({"id/a": one}, {"id/a": other})
    with pytest.raises(ValueError, match="are the same samples"):
        require_apart({"id/a": one}, {"id/a": same})
    require_apart({"id/a": DataLoader(Own(tmp_path))}, {"id/a": DataLoader(Own(tmp_path))})

"""Corrupted copies of a set, as an out-of-domain set: functions of images ``(3, H, W)``, after normalisation."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate
from torch.utils.data import Dataset


def gaussian_noise(image: Tensor, generator: torch.Generator) -> Tensor:
    return image + 0.6 * torch.randn(image.shape, generator=generator)


def contrast(image: Tensor, generator: torch.Generator) -> Tensor:
    mean = image.mean((-2, -1), keepdim=True)
    return mean + 0.25 * (image - mean)


def pixelate(image: Tensor, generator: torch.Generator) -> Tensor:
    coarse = avg_pool2d(image[None], 4)
    return interpolate(coarse, size=image.shape[-2:], mode="nearest")[0]


def motion_blur(image: Tensor, generator: torch.Generator) -> Tensor:
    kernel = torch.full((1, 1, 1, 9), 1 / 9)
    return conv2d(image[:, None], kernel, padding="same")[:, 0]


CORRUPTIONS = {function.__name__: function for function in (gaussian_noise, contrast, pixelate, motion_blur)}


class Corrupted(Dataset):
    """A set whose images are corrupted, each always in the same way."""

    def __init__(self, images: Dataset, corruption: str) -> None:
        self.images = images
        self.function = CORRUPTIONS[corruption]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.function(image, torch.Generator().manual_seed(index)), label

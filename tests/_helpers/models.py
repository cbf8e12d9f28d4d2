"""Models of the kinds that merging must handle, as small as they can be; all take images ``(B, 3, 8, 8)``."""

import copy

import torch
from torch import nn

from _helpers.states import noise
from lwptv_lightning import TaskVectors


class Block(nn.Module):
    """Attention and MLP as in a ViT, without what only large models need."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens):
        query, key, value = self.qkv(self.norm1(tokens)).chunk(3, dim=-1)
        tokens = tokens + self.proj((query @ key.transpose(-2, -1)).softmax(-1) @ value)
        return tokens + self.fc2(nn.functional.gelu(self.fc1(self.norm2(tokens))))


class ViT(nn.Module):
    """Patches, a class token, positions and two blocks."""

    def __init__(self, width=8):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 4, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 4)

    def forward(self, images):
        tokens = self.patch_embed(images).flatten(2).transpose(1, 2) + self.pos_embed + self.cls_token
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class ResNet(nn.Module):
    """Batch normalisation, and a shortcut around a convolution."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)

    def forward_features(self, images):
        features = self.bn1(self.conv1(images)).relu()
        return (features + self.bn2(self.conv2(features))).relu()

    def forward_head(self, features, pre_logits=False):
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


class OwnClassifiers(ResNet):
    """A model of timm's kind, whose experts have classifiers of different sizes; see `states_of`."""

    def __init__(self):
        super().__init__()
        self.pretrained_cfg = {"classifier": "fc"}


class Pointwise(nn.Module):
    """1x1 convolutions, which are matrices of four dimensions, one of them grouped."""

    def __init__(self):
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.project = nn.Conv2d(8, 4, 1)

    def forward(self, images):
        return self.project(self.depthwise(self.expand(images).relu()).relu()).mean((2, 3))


class Tied(nn.Module):
    """Two layers that share one weight, which a state dict holds under two names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(192, 4)
        self.encoder = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, images):
        return self.decoder(self.encoder(self.stem(images.flatten(1))).relu())


MODELS = {
    "ViT": ViT,
    "ResNet": ResNet,
    "own classifiers": OwnClassifiers,
    "1x1 convolutions": Pointwise,
    "tied weights": Tied,
}


def make_model(kind):
    """Make a model of a kind, the same each time, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[kind]().eval()


def fine_tuned_model(model, seed):
    """Return a copy of a model with noise on its parameters and running statistics; tied ones stay tied."""
    tuned = copy.deepcopy(model)
    tuned.load_state_dict(noise(tuned.state_dict(), seed, 0.1))
    for name, buffer in tuned.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_()
    return tuned


def states_of(model, tasks=("a", "b")):
    """Return state dicts of a base and of its fine-tuned models, which have classifiers of their own where they may."""
    tuned = {task: fine_tuned_model(model, seed).state_dict() for seed, task in enumerate(tasks, start=1)}
    if isinstance(model, OwnClassifiers):
        for classes, state in enumerate(tuned.values(), start=5):
            shapes = {"fc.weight": (classes, model.fc.in_features), "fc.bias": (classes,)}
            state |= noise({name: torch.zeros(shape) for name, shape in shapes.items()}, classes, 0.3)
    return copy.deepcopy(model).state_dict(), tuned


def vectors_of_model(model, tasks=("a", "b")):
    """Return the task vectors of a model that is made up to be fine-tuned."""
    return TaskVectors.open(*states_of(model, tasks), model=model)

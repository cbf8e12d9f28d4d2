"""Hand-made modules, whose layers can be read off the code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lwptv_lightning.layers import Layers


class Residual(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Reversed(nn.Module):
    """Uses its modules in another order than it defines them, one not at all, and has tensors of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.token = nn.Parameter(torch.zeros(4))
        self.head = nn.Linear(4, 2)
        self.unused = nn.Linear(4, 4)
        self.stem = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x) + self.token - self.shift)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decode = nn.Linear(4, 6)
        self.embed = nn.Embedding(6, 4)
        self.decode.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.embed(x))


class Repeating(nn.Module):
    """One block that stands at three places."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Residual()] * 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Stage(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.downsample = nn.Linear(4, 4)
        self.blocks = nn.Sequential(*(Residual() for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Staged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.stages = nn.Sequential(Stage(2), Stage(1))

    def forward(self, x):  # without annotations, which torch 2.10 cannot pickle in a graph where they are text
        return self.stages(self.stem(x))


class Buffered(nn.Module):
    """Reads a persistent buffer through arithmetic, in a module without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((4,), 2.0))
        self.register_buffer("count", torch.zeros(4, dtype=torch.long))
        self.register_buffer("scratch", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean * 2 + self.scratch + self.count


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if x.sum() > 0 else x


class Optional(nn.Module):
    """Has arguments with defaults, of which one decides what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, twice: bool = True) -> Tensor:
        x = self.fc(x) if mask is None else self.fc(x * mask)
        return self.fc(x) if twice else x


class Caching(nn.Module):
    """Keeps a result in eval mode, as the attention biases of LeViT are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and "bias" not in self.cache:
            self.cache["bias"] = self.bias * 2
        return x + self.cache["bias"]


def as_dict(layers: Layers) -> dict[str, tuple[str, ...]]:
    return {layer.name: layer.tensors for layer in layers}

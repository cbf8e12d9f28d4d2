"""Small models with their experts, and loaders of images, for what is learnt without labels."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import EvaluationSuite, MergeModule, TaskVectors, zoo

TASKS = ("a", "b", "c")
CLASSES = {"a": 3, "b": 5, "c": 4}


class Net(nn.Module):
    """Features of small images, with batch normalisation in between."""

    def __init__(self, width=12):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 16, width)

    def forward(self, images):
        return self.fc(torch.relu(self.norm(self.conv(images))).flatten(1))


def seeded(make, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def changed(model, seed, size=0.2):
    """A state dict with noise on all that floats; variances stay positive."""
    generator = torch.Generator().manual_seed(seed)

    def moved(name, tensor):
        if not tensor.is_floating_point():
            return tensor.clone()
        noise = size * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        return (tensor + noise).abs() if name.endswith("running_var") else tensor + noise

    return {name: moved(name, tensor) for name, tensor in model.state_dict().items()}


def images(seed, size=40):
    return torch.randn(size, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def loaders(size=40, batch_size=16, labels=None, **options):
    """One loader a task; ``labels(size)`` makes what stands beside the images, by default nothing."""

    def data(place):
        own = images(place, size)
        return TensorDataset(own) if labels is None else TensorDataset(own, labels(size))

    return {f"id/{task}": DataLoader(data(i), batch_size, **options) for i, task in enumerate(TASKS)}


def gated_module(make=Net, heads=True, dtype=torch.float32, exclude=(), **options):
    """A merge module of three experts, with a linear head each."""
    model = seeded(make, 0).to(dtype)
    experts = {task: changed(model, seed) for seed, task in enumerate(TASKS, start=1)}
    vectors = TaskVectors.open(model, experts, exclude=exclude)
    given = {task: seeded(lambda task=task: nn.Linear(12, CLASSES[task]), 7).to(dtype) for task in TASKS}
    return MergeModule(seeded(make, 5).to(dtype), vectors, heads=given if heads else {}, **options)


class Untouchable(list):
    def __iter__(self):
        raise AssertionError("OOD data was touched")


def untouchable() -> EvaluationSuite:
    """The zoo's ID sets, and an OOD set that must not be read."""
    ood = DataLoader(Untouchable([0]), batch_sampler=Untouchable([[0]]))
    return EvaluationSuite.of({**zoo.loaders("validation", size=9, sets=zoo.ID_SETS), "ood/far/x": ood})


def grouped() -> EvaluationSuite:
    """The zoo's ID sets in a group, but for one that also stands by itself."""
    own = zoo.loaders("validation", size=1, sets=zoo.ID_SETS)
    first, *_ = own
    return EvaluationSuite.of({first: own[first]} | {f"id/g/{name[3:]}": loader for name, loader in own.items()})

"""Experts with classifiers of 2, 5 and 10 classes, tuned from one base by plain Lightning, and sets to try them on."""

import functools
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = {"two": 2, "five": 5, "ten": 10}
"""Task to number of classes; the base tells three apart."""
HEADS = {f"{task}_far": task for task in CLASSES}
"""OOD set to the task whose classes it has: the same patterns, inverted, paler and with more noise."""
NETWORKS = {
    "resnet": ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "ls_init_value": 1.0}),
}
"""Kind to timm's name and the arguments that make a network small: with batch normalisation, and without."""
SIZE, STEPS, BATCH, SAMPLES = 32, 60, 32, 60
RATES = {"resnet": (1e-2, 2.5e-3), "convnext": (2e-3, 1e-3)}
"""For the base and for its experts."""


@dataclass(frozen=True)
class Experts:
    """Lightning checkpoints of a base and its experts, and what to evaluate them on.

    Attributes:
        kind: One of `NETWORKS`.
        base: The base's checkpoint, whose tensors begin with ``model.`` as the experts' do.
        tasks: Task to checkpoint.
        sets: Loader name, ``id/<task>`` or ``ood/<task>_far``, to images in [0, 1], ``(60, 3, 32, 32)``, and labels.
    """

    kind: str
    base: Path
    tasks: dict[str, Path]
    sets: dict[str, TensorDataset]

    def network(self, classes=3):
        """Make a network of this kind, the same each time, in evaluation mode."""
        return make_network(self.kind, classes)

    def loaders(self):
        """Return a loader for each set."""
        return {name: DataLoader(data, batch_size=BATCH) for name, data in self.sets.items()}

    def expert(self, task):
        """Return a task's expert, or the base where that is asked for, loaded as timm's users do."""
        state = torch.load(self.tasks.get(task, self.base), weights_only=True)["state_dict"]
        network = self.network(CLASSES.get(task, 3))
        network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
        return network


class Tuning(LightningModule):
    """What everyone writes to fine-tune a network."""

    def __init__(self, model, rate):
        super().__init__()
        self.model, self.rate = model, rate

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


def make_network(kind, classes):
    import timm

    name, arguments = NETWORKS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=classes, **arguments).eval()


def train_experts(folder, kind):
    """Train a base and from it an expert of each task, the same each time, with their checkpoints in a folder."""
    for name, content in _trained(kind).items():
        (folder / name).write_bytes(content)
    return Experts(kind, folder / "base.ckpt", {task: folder / f"{task}.ckpt" for task in CLASSES}, make_sets())


@functools.cache
def _trained(kind):
    """Return the checkpoints, which all tests of a run share."""
    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng():
        folder = Path(name)
        base = _tune(make_network(kind, 3), RATES[kind][0], patterns(3, 3, SAMPLES), folder / "base.ckpt")
        backbone = {name: value for name, value in base.state_dict().items() if not _is_classifiers(base, name)}
        for style, (task, classes) in enumerate(CLASSES.items()):
            network = make_network(kind, classes)
            network.load_state_dict(backbone, strict=False)
            _tune(network, RATES[kind][1], patterns(classes, style, 6 * SAMPLES), folder / f"{task}.ckpt")
        return {path.name: path.read_bytes() for path in folder.glob("*.ckpt")}


def make_sets():
    """Return the ID and OOD sets by the names of their loaders."""
    sets = {}
    for style, (task, classes) in enumerate(CLASSES.items()):
        sets[f"id/{task}"] = patterns(classes, style, SAMPLES, seed=1)
        sets[f"ood/{task}_far"] = patterns(classes, style, SAMPLES, seed=2, far=True)
    return dict(sorted(sets.items()))


def patterns(classes, style, count, seed=0, *, far=False):
    """Return images of gratings with noise: the class is their direction and width, the style their colour."""
    generator = torch.Generator().manual_seed(100 * style + seed)
    labels = torch.arange(count) % classes
    grid = torch.linspace(0, 2 * math.pi, SIZE)
    angles, widths = (labels % 5) * math.pi / 5, 3 + 4 * (labels // 5)
    along = angles.cos()[:, None, None] * grid + angles.sin()[:, None, None] * grid[:, None]
    phases = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    waves = (widths[:, None, None] * along + phases).sin()[:, None]
    colour = torch.tensor([[0.4, 0.1, 0.1], [0.1, 0.4, 0.1], [0.1, 0.1, 0.4], [0.2, 0.2, 0.2]])[style]
    noise = (0.15 if far else 0.05) * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    images = 0.5 + (-0.6 if far else 1.0) * colour[:, None, None] * waves + noise
    return TensorDataset(images.clamp(0, 1), labels)


def write_images(folder, data):
    """Write a set as images, a folder for each class, in names that sort as the labels do."""
    images, labels = data.tensors
    for number, (image, label) in enumerate(zip((255 * images).round().byte(), labels.tolist(), strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / str(label) / f"{number:03}.png")


def _is_classifiers(network, name):
    return name.startswith(network.pretrained_cfg["classifier"] + ".")


def _tune(network, rate, data, path):
    torch.manual_seed(1)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(
        max_steps=STEPS,
        max_epochs=-1,
        gradient_clip_val=1.0,
        accelerator="cpu",
        devices=1,
        default_root_dir=path.parent,
        **dict.fromkeys(quiet, False),
    )
    trainer.fit(Tuning(network.train(), rate), DataLoader(data, batch_size=BATCH, shuffle=True))
    trainer.save_checkpoint(path)
    return network.eval()

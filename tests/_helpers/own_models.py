"""A user's folder: a base, four experts with classifiers of their own sizes, and folders of images for ID and OOD.

Nothing is trained: an expert is the base with noise, and its classifier compares features with the mean of each class,
so that experts are right far more often than by chance.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torchvision.datasets import ImageFolder

CLASSES = {
    "cats": ("manx", "persian"),
    "cars": ("bus", "coupe", "sedan", "van"),
    "birds": ("crow", "gull", "wren"),
    "flags": ("chad", "fiji", "laos", "oman", "peru"),
}
"""Task to its classes, in the order of their labels."""
OOD = {
    "near/cars_night": ("cars", ("coupe", "van")),
    "near/birds_fog": ("birds", None),
    "far/cats_drawn": ("cats", None),
}
"""Set to the task whose classes it has, and which of them, if not all: numbered anew, those of cars would be wrong."""
KINDS = ("safetensors", "pth", "ckpt", "timm")
"""How the checkpoints of the four experts are written: plain, torch's, Lightning's, a folder of timm's."""
ODD_NAMES = {"cats": "chats d'été", "cars": "машины 2", "birds": "鳥", "flags": "flags.v1", "images": "all my images"}
"""Names with what shells, YAML and patterns take for their own; for `names`."""


@dataclass
class OwnFolder:
    """Where everything is, as a configuration names it, relative to `folder`."""

    folder: Path
    model: str
    base: str
    tasks: dict[str, str] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    id: dict[str, str] = field(default_factory=dict)
    ood: dict[str, str] = field(default_factory=dict)
    validation: dict[str, str] = field(default_factory=dict)

    @property
    def configuration(self):
        """What `lwptv init` should find, and what the other commands take."""
        data = {"id": self.id, "ood": self.ood, "batch_size": 16, "num_workers": 0}
        if self.validation:
            data["validation"] = self.validation
        quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        made = {"model": self.model, "base": self.base, "tasks": self.tasks, "heads": self.heads, "data": data}
        return made | {"recipe": {"rule": "task_arithmetic", "scale": 0.3}, "trainer": quiet}

    def write(self, path="suite.yaml", **changes):
        """Write the configuration beside the models, and return where it is."""
        path = self.folder / path
        path.write_text(yaml.safe_dump(self.configuration | changes, allow_unicode=True, sort_keys=False), "utf-8")
        return path


def write_own_models(
    folder, model="test_resnet", *, kinds=KINDS, base="safetensors", layout="splits", images=4, names=None, seed=0
):
    """Write models and images, and return the `OwnFolder`.

    Args:
        folder: Where; made if need be.
        model: A name of timm's of a model for colour images; ``test_resnet`` has batch norm, ``test_vit`` has not.
        kinds: Of the four experts' checkpoints.
        base: The base's kind.
        layout: ``splits`` (images/test/cats, images/val/cats, images/ood/near/cars_night), ``sets`` (images/cats/test,
            images/cats/val, images/ood/near/cars_night/test) or ``plain``, without validation (images/cats).
        images: Of each class, in each split.
        names: Other names of tasks, and of the folder "images".
        seed: Of weights and pixels.
    """
    folder = Path(folder)
    names = {name: name for name in (*CLASSES, "images")} | (names or {})
    made = OwnFolder(folder, model, "")
    _write_images(made, layout, images, names, seed)
    torch.manual_seed(seed)
    network = timm.create_model(model, num_classes=7)
    _measure_batch_norm(network, torch.cat([_read(folder / place, network)[0] for place in made.id.values()]))
    made.base = write_checkpoint(network, folder / "models" / "base", base)
    for number, (task, kind) in enumerate(zip(CLASSES, kinds, strict=True)):
        expert = expert_of(network, len(CLASSES[task]), folder / made.id[names[task]], seed=seed + number)
        made.tasks[names[task]] = write_checkpoint(expert, folder / "models" / names[task], kind)
    return made


def expert_of(base, classes, images, *, seed=0, noise=0.2):
    """Return a base with noise, whose classifier has the mean features of each class of a folder of images."""
    expert = copy.deepcopy(base)
    expert.reset_classifier(classes)
    generator = torch.Generator().manual_seed(seed)
    batch, labels = _read(images, expert)
    with torch.no_grad():
        for value in expert.parameters():
            value += noise * value.std(correction=0) * torch.randn(value.shape, generator=generator)
        _measure_batch_norm(expert, batch)
        features = expert.forward_head(expert.forward_features(batch), pre_logits=True)
        means = torch.stack([features[labels == label].mean(0) for label in range(classes)])
        classifier = expert.get_classifier()
        classifier.weight.copy_(means)
        classifier.bias.copy_(-means.square().sum(1) / 2)
    return expert


def _read(images, model):
    pictures = ImageFolder(images, create_transform(**resolve_model_data_config(model)))
    return torch.stack([image for image, _ in pictures]), torch.tensor(pictures.targets)


def _measure_batch_norm(model, batch):
    """Set running statistics to those of a batch, as training would."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(batch)
    model.eval()


def write_checkpoint(model, stem, kind):
    """Write a timm model, and return its path relative to the folder above: ``models/cats.pth``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    path = stem if kind == "timm" else stem.with_name(f"{stem.name}.{kind}")
    if kind == "timm":
        timm.models.save_for_hf(model, str(path), safe_serialization=True)
    elif kind == "safetensors":
        save_file(state, path)
    elif kind == "pth":
        torch.save(state, path)
    else:
        lightning = {
            "epoch": 3,
            "global_step": 12,
            "pytorch-lightning_version": "2.6.6",
            "hyper_parameters": {"lr": 0.1},
        }
        torch.save(lightning | {"state_dict": {f"model.{name}": value for name, value in state.items()}}, path)
    return f"{stem.parent.name}/{path.name}"


def _write_images(made, layout, images, names, seed):
    """Write the folders of images, and say in the `OwnFolder` where they are."""
    generator = np.random.default_rng(seed)

    def write(split, name, task, chosen, look):
        place = {
            "splits": f"{split}/{name}" if split != "ood" else f"ood/{name}",
            "sets": f"{name}/{split}" if split != "ood" else f"ood/{name}/test",
            "plain": name,
        }[layout]
        for title in chosen or CLASSES[task]:
            target = made.folder / names["images"] / place / title
            target.mkdir(parents=True)
            for number in range(images):
                pixels = _picture(task, CLASSES[task].index(title), look, generator)
                Image.fromarray(pixels).save(target / f"{number:03}.png")
        return f"{names['images']}/{place}"

    for task in CLASSES:
        made.id[names[task]] = write("test", names[task], task, None, "plain")
        if layout != "plain":
            made.validation[names[task]] = write("val", names[task], task, None, "plain")
    for name, (task, chosen) in OOD.items():
        made.ood[name] = write("ood", name, task, chosen, name.partition("/")[0])
        made.heads[name.partition("/")[2]] = names[task]


def _picture(task, label, look, generator):
    """Waves whose direction and length are the class's, in the task's colour, on noise: ``(32, 32, 3)`` bytes."""
    rows, columns = np.mgrid[:32, :32]
    angle = np.pi * label / len(CLASSES[task])
    wave = np.sin((np.cos(angle) * rows + np.sin(angle) * columns) * (0.5 + 0.15 * label) + generator.uniform(0, 0.5))
    colour = np.array([0.4, 0.7, 1.0])[
        np.array(((0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))[list(CLASSES).index(task)])
    ]
    pixels = 128 + 60 * wave[..., None] * colour + generator.normal(0, 60, (32, 32, 3))
    if look == "near":
        pixels = 40 + 0.7 * pixels
    elif look == "far":
        pixels = 255 - pixels + 40 * (rows % 8 == 0)[..., None]
    return np.clip(pixels, 0, 255).astype(np.uint8)

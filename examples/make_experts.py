"""Make what a user of this library has: a base, four models that were fine-tuned from it, and folders of images.

python examples/make_experts.py own
lwptv init own
lwptv tune --config suite.yaml

The models are small and learn to read characters, each task with classes and a style of its own, in less than a minute
on two cores. ``own/models`` has the base as a folder that timm loads and the experts as Lightning's checkpoints,
``own/images`` the training, validation and test images of each task, and sets out of their domains: the same characters
in other styles, near ones that the base has seen, and far ones.
"""

import argparse
import copy
import logging
import unicodedata
from pathlib import Path

import numpy as np
import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder

from lwptv_lightning.zoo.data import draw_domain
from lwptv_lightning.zoo.domains import Domain
from lwptv_lightning.zoo.glyphs import characters

MODEL = "test_convnext"
IMAGES = {
    "input_size": (3, 32, 32),
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "crop_pct": 1.0,
    "interpolation": "bilinear",
}
CLASSES = {"digits": 10, "upper": 16, "lower": 12, "greek": 14}
"""Task, which is an alphabet, to how many of its characters it has."""
STYLES = {"digits": "photo", "upper": "noise", "lower": "rotated", "greek": "dots"}
MILD_STYLES = ("plain", "elastic", "stripes", *STYLES.values())
"""What the base is trained on, at a third of the strength."""
OOD = {
    "near/digits_elastic": "digits",
    "near/lower_stripes": "lower",
    "far/upper_outline": "upper",
    "far/lower_pixelated": "lower",
    "far/greek_occluded": "greek",
}


class Classifier(LightningModule):
    """An ordinary training of a model of timm."""

    def __init__(self, model: torch.nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.model, self.learning_rate = model, learning_rate

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> dict:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=0.02)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(folder: str = "own", images: int = 200, epochs: int = 6) -> None:
    """Write models and images.

    Args:
        folder: Where; it must be empty, or not be there.
        images: In each validation, test and OOD set, of which each class needs one; experts are trained on three times
            as many, the base on ten times.
        epochs: Of the base's training; the experts have two thirds.
    """
    own = Path(folder)
    if own.exists() and any(own.iterdir()):
        raise SystemExit(f"{own} is not empty; give another folder.")
    if images < max(CLASSES.values()):
        raise SystemExit(
            f"--images must be at least {max(CLASSES.values())}, so that each class has one, not {images}."
        )
    for task in CLASSES:
        for split, size in {"train": 3 * images, "val": images, "test": images}.items():
            write_images(own / "images" / split / task, task, STYLES[task], 0.9, split, size)
    for name, task in OOD.items():
        write_images(own / "images" / "ood" / name, task, name.rpartition("_")[2], 0.7, "test", images)
    (own / "models").mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    base = train(timm.create_model(MODEL, num_classes=sum(CLASSES.values())), base_images(10 * images), epochs, 4e-3)[0]
    timm.models.save_for_hf(base, str(own / "models" / "base"), model_config={"pretrained_cfg": IMAGES})
    for task, classes in CLASSES.items():
        data = read_images(own / "images" / "train" / task)
        expert, trainer = train(with_classifier(base, data, classes), data, max(1, 2 * epochs // 3), 3e-3)
        trainer.save_checkpoint(own / "models" / f"{task}.ckpt", weights_only=True)
        right = [
            accuracy(model, own / "images" / "test" / task) for model in (with_classifier(base, data, classes), expert)
        ]
        print(
            f"{task}: the base has {100 * right[0]:.1f} %, its expert {100 * right[1]:.1f} % of the test images right"
        )
    print(f"Wrote {own}. Now: lwptv init {own}")


def draw(task: str, style: str, strength: float, split: str, index: int) -> tuple[Image.Image, int]:
    """Return one image of a task, and which of the task's characters it shows; all characters take turns."""
    turn, label = divmod(index, CLASSES[task])
    domain = Domain(task, style, strength)
    pixels, _ = draw_domain(domain, f"{task}_{style}", split, turn * len(characters(task)) + label)
    return Image.fromarray(np.clip(128 + 42 * pixels, 0, 255).astype(np.uint8)), label


def write_images(folder: Path, task: str, style: str, strength: float, split: str, size: int) -> None:
    """Write one folder for each class, named as Unicode names the character."""
    for index in range(size):
        image, label = draw(task, style, strength, split, index)
        target = folder / unicodedata.name(characters(task)[label]).lower().replace(" ", "_")
        target.mkdir(parents=True, exist_ok=True)
        image.save(target / f"{index:04}.png")


def read_images(folder: Path) -> TensorDataset:
    """Return images and labels, as `lwptv` reads them."""
    found = ImageFolder(str(folder), create_transform(**resolve_data_config(IMAGES)))
    return TensorDataset(torch.stack([image for image, _ in found]), torch.tensor(found.targets))


def base_images(size: int) -> TensorDataset:
    """Return what the base learns: the characters of all tasks, in mild forms of many styles."""
    transform, chance = create_transform(**resolve_data_config(IMAGES)), np.random.default_rng(0)
    first = dict(zip(CLASSES, np.cumsum([0, *CLASSES.values()]), strict=False))
    images, labels = [], []
    for index in range(size):
        task = list(CLASSES)[index % len(CLASSES)]
        style = MILD_STYLES[chance.integers(len(MILD_STYLES))]
        image, label = draw(task, style, chance.uniform(0, 0.3), "base", index // len(CLASSES))
        images.append(transform(image.convert("RGB")))
        labels.append(int(first[task]) + label)
    return TensorDataset(torch.stack(images), torch.tensor(labels))


def train(
    model: torch.nn.Module, data: TensorDataset, epochs: int, learning_rate: float
) -> tuple[torch.nn.Module, Trainer]:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", **quiet)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    trainer.fit(Classifier(model.train(), learning_rate), loader)
    return model.eval(), trainer


def with_classifier(base: torch.nn.Module, data: TensorDataset, classes: int, steps: int = 150) -> torch.nn.Module:
    """Return the base with a classifier of a task's own, trained on the base's features, which then stays as it is."""
    model = copy.deepcopy(base)
    model.reset_classifier(classes)
    images, labels = data.tensors
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    classifier = model.get_classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=0.02, weight_decay=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(classifier(features), labels).backward()
        optimizer.step()
    classifier.requires_grad_(False)
    return model


@torch.no_grad()
def accuracy(model: torch.nn.Module, folder: Path) -> float:
    images, labels = read_images(folder).tensors
    return (model(images).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    parser.add_argument("folder", nargs="?", default="own")
    parser.add_argument("--images", type=int, default=200, help="in each validation, test and OOD set")
    parser.add_argument("--epochs", type=int, default=6, help="of the base's training")
    main(**vars(parser.parse_args()))

"""A small configuration in the flat form: a base, experts of different class counts, folders of images."""

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

CLASSES = {"cats": 3, "cars": 4}
SUITE = """\
model: test_resnet
base: models/base.safetensors
tasks: {cats: models/cats.safetensors, cars: models/cars.safetensors}
heads: {cats_drawn: cats}
data:
  id: {cats: images/test/cats, cars: images/test/cars}
  ood: {far/cats_drawn: images/ood/cats_drawn}
  validation: {cats: images/val/cats}
  batch_size: 16
recipe: {rule: task_arithmetic, scale: 0.3, ratio: 0.5}
trainer: {accelerator: cpu, logger: false, enable_progress_bar: false, enable_model_summary: false}
"""


def write_images(folder, classes, count=2, shade=0):
    """Write images of one shade for each class, which differ from class to class."""
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((40, 48, 3), (shade + 40 * place + number) % 256, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def write_suite(folder, text=SUITE):
    """Write checkpoints, images and ``suite.yaml`` to a folder."""
    torch.manual_seed(0)
    (folder / "models").mkdir(parents=True)
    base = timm.create_model("test_resnet", num_classes=7).state_dict()
    save_file(base, folder / "models" / "base.safetensors")
    for number, (task, count) in enumerate(CLASSES.items(), 1):
        own = timm.create_model("test_resnet", num_classes=count).state_dict()
        alike = {name: value for name, value in base.items() if own[name].shape == value.shape}
        tuned = {
            name: value * (1 + number / 100) if value.is_floating_point() else value for name, value in alike.items()
        }
        save_file(own | tuned, folder / "models" / f"{task}.safetensors")
        for split in ("test", "val"):
            write_images(folder / "images" / split / task, [f"{task}_{place}" for place in range(count)])
    write_images(folder / "images" / "ood" / "cats_drawn", ["cats_0", "cats_2"], count=3)
    (folder / "suite.yaml").write_text(text, encoding="utf-8")
    return folder / "suite.yaml"

"""Folders of images, one sub-folder for each class, as they lie on people's disks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

IMAGES = tuple(sorted({*IMG_EXTENSIONS, ".gif", ".jfif", ".avif"}))
"""How names of images end; torchvision's, and some that Pillow reads as well."""
_OF_SYSTEMS = ("@eadir", "__macosx", "thumbs.db", "desktop.ini")
"""What file servers and systems leave between images."""


def is_left_alone(name: str) -> bool:
    """Tell whether a file or folder of this name is hidden, or a system's own, and no class or image.

    Example:
        >>> is_left_alone(".ipynb_checkpoints"), is_left_alone("cat")
        (True, False)
    """
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


class ClassFolders(ImageFolder):  # type: ignore[misc]
    """Images and labels of a folder with one sub-folder for each class; hidden files and folders are no part of it.

    Args:
        root: The folder.
        key: What the set is called in messages.
        transform: What is done to each image.
        allow_empty: Whether a class may have no image.

    Raises:
        FileNotFoundError: There is no class, or one without an image.
        ValueError: On access, an image cannot be read.

    Attributes:
        left_out: Files that are no images by their names, in the order that they are found.
    """

    left_out: list[str]

    def __init__(self, root: str | Path, key: str = "", *, transform: Any = None, allow_empty: bool = False) -> None:
        self.left_out = []
        self._key = key
        super().__init__(str(root), transform, is_valid_file=self._is_image, allow_empty=allow_empty)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Return the names of the classes in their order, and their numbers."""
        with os.scandir(directory) as entries:
            classes = sorted(entry.name for entry in entries if entry.is_dir() and not is_left_alone(entry.name))
        if not classes:
            raise FileNotFoundError(f"{directory} has no sub-folders, expected one for each class, with its images.")
        return classes, {name: number for number, name in enumerate(classes)}

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return an image and its label."""
        path, label = self.samples[index]
        try:
            image = self.loader(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, of broken files
            where = f"{self._key}: " if self._key else ""
            raise ValueError(f"{where}{path!r} cannot be read as an image: {error}") from error
        return (image if self.transform is None else self.transform(image)), label

    def _is_image(self, path: str) -> bool:
        """Tell whether a file is an image of the set, by its name."""
        name = os.path.relpath(path, self.root)
        if any(is_left_alone(part) for part in Path(name).parts):
            return False
        if not name.lower().endswith(IMAGES):
            self.left_out.append(name)
            return False
        return True

"""`log_picture`: hand a picture to a logger, as far as it can hold one."""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image


@singledispatch
def log_picture(logger: Logger, picture: Path, step: int) -> None:
    """Give a PNG to a logger under the file's name; a logger without pictures, such as CSV's, is left alone.

    For another logger register a function: ``@log_picture.register``. Loggers tell versions apart by the step.

    Example:
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> log_picture(CSVLogger("out"), Path("id_ood.png"), 0)
    """


@log_picture.register
def _(logger: TensorBoardLogger, picture: Path, step: int) -> None:
    with Image.open(picture) as image:
        logger.experiment.add_image(picture.stem, np.asarray(image.convert("RGB")), step, dataformats="HWC")


@log_picture.register
def _(logger: WandbLogger, picture: Path, step: int) -> None:
    logger.log_image(picture.stem, [str(picture)], step)


@log_picture.register
def _(logger: MLFlowLogger, picture: Path, step: int) -> None:
    # Artifacts are files: the name tells the step.
    named = f"{picture.stem}_step{step}{picture.suffix}"
    with Image.open(picture) as image:
        logger.experiment.log_image(logger.run_id, image, named)

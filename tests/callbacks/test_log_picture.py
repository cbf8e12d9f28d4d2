from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image

from lwptv_lightning.callbacks.log_picture import log_picture


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "id_ood.png"
    Image.new("RGBA", (5, 3), (255, 0, 0, 255)).save(path)
    return path


def test_tensorboard_gets_an_image_under_the_files_name(picture, tmp_path):
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path / "logs")
    log_picture(logger, picture, 7)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    (image,) = events.Images("id_ood")
    assert (image.step, image.width, image.height) == (7, 5, 3)
    logger.experiment.close()


def test_a_logger_without_pictures_is_left_alone(tmp_path):
    log_picture(CSVLogger(tmp_path / "csv"), Path("there is no such file.png"), 0)
    assert not (tmp_path / "csv").exists()


def test_another_logger_can_be_registered(picture):
    class Keeps(DummyLogger):
        def __init__(self):
            super().__init__()
            self.kept = []

    @log_picture.register
    def _(logger: Keeps, picture: Path, step: int) -> None:
        logger.kept.append((picture.name, step))

    logger = Keeps()
    log_picture(logger, picture, 3)
    assert logger.kept == [("id_ood.png", 3)]

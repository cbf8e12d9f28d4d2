import pytest
from _helpers.own_suite import write_images
from PIL import Image

from lwptv_lightning.evaluation import image_folders, named_set
from lwptv_lightning.evaluation.image_folder import ClassFolders


@pytest.fixture
def folder(tmp_path):
    """Two classes of two images each, with what file managers, notebooks and servers leave beside them."""
    write_images(tmp_path / "pets", ["cat", "dog"])
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".thumbnails"):
        (tmp_path / "pets" / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / "pets" / name / "copy.png")
    for name in ("._0.png", "Thumbs.db"):
        (tmp_path / "pets" / "cat" / name).write_bytes(b"\0")
    (tmp_path / "pets" / "cat" / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pets" / "cat" / ".ipynb_checkpoints" / "copy.png")
    return tmp_path / "pets"


def test_hidden_and_system_folders_are_no_classes_and_hold_no_images(folder):
    data = ClassFolders(folder)
    assert (data.classes, data.targets, data.left_out) == (["cat", "dog"], [0, 0, 1, 1], [])
    assert named_set("k", str(folder)).classes == ("cat", "dog")
    assert len(image_folders({"a": str(folder)}, image_size=8, num_workers=0).loaders["id/a"].dataset) == 4


def test_files_that_are_no_images_are_told(folder):
    (folder / "dog" / "notes.txt").touch()
    assert ClassFolders(folder).left_out == ["dog/notes.txt"]
    assert named_set("data.id.a", str(folder)).note == (
        "data.id.a: 1 file is left out, no images by name, such as 'dog/notes.txt'."
    )


def test_what_pillow_reads_counts_whatever_the_case_of_its_name(folder):
    Image.new("P", (4, 4)).save(folder / "dog" / "2.gif")
    Image.new("RGB", (4, 4)).save(folder / "dog" / "3.JPG", format="JPEG")
    data = ClassFolders(folder)
    assert len(data) == 6
    assert {data[place][0].mode for place in range(6)} == {"RGB"}


@pytest.mark.parametrize("broken", ["cut", "empty", "gone"])
def test_a_broken_image_is_named_with_its_set(folder, broken):
    path = folder / "dog" / "1.png"
    content = path.read_bytes()
    data = ClassFolders(folder, "data.id.pets")
    path.unlink()
    if broken != "gone":
        path.write_bytes(content[: len(content) // 2] if broken == "cut" else b"")
    place = next(place for place, (name, _) in enumerate(data.samples) if name == str(path))
    with pytest.raises(ValueError, match=r"data\.id\.pets: '.*1\.png' cannot be read as an image: "):
        data[place]


def test_a_folder_without_classes_is_refused(tmp_path):
    (tmp_path / ".git").mkdir()
    with pytest.raises(FileNotFoundError, match="has no sub-folders, expected one for each class"):
        ClassFolders(tmp_path)

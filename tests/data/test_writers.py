from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage
from PIL import Image

from common.data import AtomicPILWriter
from common.errors import InputError


def save(folder: Path, classes: torch.Tensor, num_classes: int) -> Path:
    """Save a map (columns, rows) of classes as the bundles do."""

    def writer(**kwargs: object) -> AtomicPILWriter:
        return AtomicPILWriter(num_classes, **kwargs)

    SaveImage(folder, "seg", ".png", np.uint8, separate_folder=False, writer=writer)(
        MetaTensor(classes[None].float(), meta={"filename_or_obj": "chest.png"})
    )
    return folder / "chest_seg.png"


def test_classes_are_grey_levels_in_rows_and_columns(tmp_path: Path):
    classes = torch.zeros(5, 3, dtype=torch.long)
    classes[4, 0] = 1  # top right
    image = Image.open(save(tmp_path, classes, 2))
    assert (image.mode, image.size) == ("L", (5, 3))
    np.testing.assert_array_equal(image, [[0, 0, 0, 0, 255], [0] * 5, [0] * 5])


def test_more_classes_are_spread_evenly(tmp_path: Path):
    for num_classes, levels in ((3, [0, 128, 255]), (4, [0, 85, 170, 255])):
        classes = torch.arange(num_classes)[:, None].expand(-1, 2)
        image = np.asarray(Image.open(save(tmp_path, classes, num_classes)))
        assert image.tolist() == [levels, levels]
    assert len(set(AtomicPILWriter(256).levels)) == 256


def test_bad_number_of_classes_is_named():
    for wrong in (1, 257):
        with pytest.raises(ValueError, match=f"num_classes is {wrong}; allowed are 2 to 256"):
            AtomicPILWriter(wrong)


def test_nothing_is_left_of_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = save(tmp_path, torch.eye(4), 2).read_bytes()

    def full(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(RuntimeError, match="No space left on device"):
        save(tmp_path, torch.zeros(4, 4), 2)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [
        ("chest_seg.png", before)
    ]


def test_a_link_or_a_folder_in_the_masks_place_is_left(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("the user's")
    writer = AtomicPILWriter(2)
    writer.set_data_array(np.zeros((1, 4, 4)))
    (tmp_path / "link.png").symlink_to(victim)
    (tmp_path / "folder.png").mkdir()
    for name in ("link.png", "folder.png"):
        with pytest.raises(InputError, match=f"The mask .*{name} cannot be written"):
            writer.write(tmp_path / name)
    assert victim.read_text() == "the user's"

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common.errors import InputError
from common.evaluation import dice_per_class, draw_overlay


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    affine = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


@pytest.fixture
def maps(tmp_path: Path) -> dict[str, Path]:
    label = np.zeros((20, 24, 12), np.uint8)
    label[4:12, 4:12, 2:10] = 1
    label[6:8, 6:8, 4:6] = 2
    prediction = label.copy()
    prediction[4:8, 4:12, 2:10] = 0  # half of the liver, and the tumour, missed
    image = np.random.default_rng(0).normal(40, 20, label.shape).astype(np.float32)
    return {
        name: write(tmp_path / f"{name}.nii.gz", values)
        for name, values in (("image", image), ("label", label), ("prediction", prediction))
    }


def test_dice(maps: dict[str, Path]):
    liver, found, both = 8 * 8 * 8 - 8, 4 * 8 * 8, 4 * 8 * 8
    scores = dice_per_class(maps["prediction"], maps["label"])
    assert scores == {1: pytest.approx(2 * both / (liver + found)), 2: 0.0}
    assert dice_per_class(maps["label"], maps["label"]) == {1: 1.0, 2: 1.0}


def test_class_that_neither_has(tmp_path: Path):
    values = np.zeros((4, 4, 4), np.uint8)
    values[0, 0, 0] = 2
    file = write(tmp_path / "a.nii.gz", values)
    scores = dice_per_class(file, file)
    assert math.isnan(scores[1])
    assert scores[2] == 1


def test_class_that_the_prediction_alone_has(tmp_path: Path):
    values = np.zeros((4, 4, 4), np.uint8)
    label = write(tmp_path / "label.nii.gz", values)
    values[0, 0, 0] = 1
    assert dice_per_class(write(tmp_path / "prediction.nii.gz", values), label) == {1: 0.0}


def test_picture_shows_both_contours(maps: dict[str, Path], tmp_path: Path):
    file = draw_overlay(maps["image"], maps["prediction"], tmp_path / "o.png", maps["label"])
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert pixels.shape[1] > 1000
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    assert ((green > red + 60) & (green > blue + 60)).sum() > 100  # liver
    assert ((red > green + 60) & (red > blue + 60)).sum() > 20  # tumour, in the label alone
    assert [p.name for p in tmp_path.glob("*.png")] == ["o.png"]


def test_orientation_does_not_change_the_picture(maps: dict[str, Path], tmp_path: Path):
    folder = tmp_path / "turned"  # of the same names, which the pictures show
    folder.mkdir()
    turned = {}
    for name, file in maps.items():
        image = nib.load(file)
        lps = np.diag([-1.0, -1.0, 2.0, 1.0])
        lps[:2, 3] = (np.array(image.shape[:2]) - 1) * 1.0
        turned[name] = write(folder / file.name, np.asarray(image.dataobj)[::-1, ::-1], lps)
    pictures = [
        np.asarray(Image.open(draw_overlay(m["image"], m["prediction"], tmp_path / f"{i}.png")))
        for i, m in enumerate((maps, turned))
    ]
    np.testing.assert_array_equal(*pictures)


def test_bad_files_are_named(maps: dict[str, Path], tmp_path: Path):
    other = write(tmp_path / "other.nii.gz", np.zeros((5, 5, 5), np.uint8))
    with pytest.raises(InputError, match=r"prediction\.nii\.gz of size .* not on the grid of"):
        draw_overlay(other, maps["prediction"], tmp_path / "o.png")
    moved = write(tmp_path / "moved.nii.gz", np.asarray(nib.load(maps["label"]).dataobj), np.eye(4))
    with pytest.raises(InputError, match="is not on the grid of"):
        dice_per_class(maps["prediction"], moved)
    with pytest.raises(InputError, match=r"missing\.nii cannot be read"):
        dice_per_class(tmp_path / "missing.nii", maps["label"])
    with pytest.raises(InputError, match="cannot be written"):
        draw_overlay(maps["image"], maps["prediction"], tmp_path / "no/such/folder.png")


def test_radiographs(tmp_path: Path):
    """One upright picture; the grey levels of a mask are its classes."""
    rows = np.zeros((40, 60), np.uint8)
    rows[5:15, 5:20] = 255  # top left
    other = np.where(np.arange(60) < 12, rows, 0)
    noise = np.random.default_rng(0).integers(0, 9000, rows.shape, np.uint16)
    files = {}
    for name, values in (("image", noise), ("label", rows), ("prediction", other // 255)):
        files[name] = tmp_path / f"{name}.png"
        Image.fromarray(values).save(files[name])
    both, found, lung = 10 * 7, 10 * 7, 10 * 15
    dice = dice_per_class(files["prediction"], files["label"])
    assert dice == {1: pytest.approx(2 * both / (found + lung))}

    file = draw_overlay(files["image"], files["label"], tmp_path / "o.png")
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    green = (pixels[..., 1] > pixels[..., 0] + 60) & (pixels[..., 1] > pixels[..., 2] + 60)
    height, width = green.shape
    row, column = np.argwhere(green).mean(axis=0)
    assert 0.1 < column / width < 0.35
    assert row < height / 2
    assert pixels[height // 2].max() > 200, "a radiograph is shown at its own contrast"

    Image.fromarray(rows[1:]).save(tmp_path / "other.png")
    with pytest.raises(InputError, match="is not on the grid of"):
        dice_per_class(tmp_path / "other.png", files["label"])


def test_a_jpeg_is_no_mask(tmp_path: Path):
    files = [tmp_path / name for name in ("image.jpg", "mask.jpg", "mask.png")]
    for file in files:
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(file)
    with pytest.raises(InputError, match=r"mask\.jpg is a JPEG, which does not keep values"):
        dice_per_class(files[1], files[2])
    assert draw_overlay(files[0], files[2], tmp_path / "o.png").is_file()

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Orientationd
from PIL import Image

from common.errors import InputError
from common.transforms import CheckHounsfieldd, CheckInputd

from .conftest import AFFINE, check, refusal, scan, sentence, write


def test_good_case_passes_unchanged(tmp_path: Path):
    values = scan()
    image = write(tmp_path / "image.nii.gz", values)
    label = write(tmp_path / "label.nii.gz", (values > 0).astype(np.uint8))
    loaded = check(image, label)
    np.testing.assert_array_equal(loaded["image"][0], values)
    np.testing.assert_array_equal(loaded["label"][0], values > 0)


def test_channels_of_a_4d_file(tmp_path: Path):
    image = write(tmp_path / "image.nii.gz", scan((8, 9, 10, 2)))
    assert check(image, in_channels=2)["image"].shape == (2, 8, 9, 10)
    assert "has 2 channels; allowed are 1" in sentence(image)


def test_other_dimensions(tmp_path: Path):
    flat = write(tmp_path / "flat.nii.gz", scan((8, 9)))
    assert check(flat, dims=2)["image"].shape == (1, 8, 9)
    assert "flat.nii.gz is 2D, of size 8 x 9; allowed are 3D images" in sentence(flat)
    one_slice = write(tmp_path / "slice.nii.gz", scan((8, 9, 1)))
    assert "is 2D, of size 8 x 9" in sentence(one_slice)
    volume = write(tmp_path / "volume.nii.gz", scan())
    assert "is 3D, of size 8 x 9 x 10; allowed are 2D" in sentence(volume, dims=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path: Path, bad: float):
    values = scan()
    values[3, 4, 5:7] = bad
    assert "has 2 voxels that are NaN or infinite" in sentence(write(tmp_path / "i.nii", values))


def test_constant_image(tmp_path: Path):
    image = write(tmp_path / "i.nii.gz", np.full((8, 9, 10), -1024, np.int16))
    assert "has the value -1024 everywhere" in sentence(image)


def test_labels(tmp_path: Path):
    image = write(tmp_path / "image.nii.gz", scan())
    unknown = np.zeros((8, 9, 10), np.int16)
    unknown[0, 0, :3] = (3, 7, -1)
    message = sentence(image, write(tmp_path / "unknown.nii.gz", unknown))
    assert "unknown.nii.gz has the values -1, 3, 7; allowed are the classes 0 to 2" in message
    fractional = write(tmp_path / "half.nii.gz", np.full((8, 9, 10), 0.5, np.float32))
    assert "has the values 0.5" in sentence(image, fractional)
    smaller = write(tmp_path / "smaller.nii.gz", np.zeros((8, 9, 9), np.uint8))
    message = sentence(image, smaller)
    assert f"{smaller} is not on the grid of its image {image}: it has 8 x 9 x 9" in message
    assert "2 x 2 x 3 mm, origin (0, 0, 0), axes RAS, the image 8 x 9 x 10" in message


def moved(x: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += x
    return affine


FLIPPED = AFFINE.copy()
FLIPPED[:2] *= -1
STRETCHED = AFFINE.copy()
STRETCHED[2, 2] *= 1.02  # the farthest of ten slices is 0.18 slices away


@pytest.mark.parametrize(
    ("affine", "expected"),
    [
        (FLIPPED, "origin (0, 0, 0), axes LPS, the image"),
        (moved(50), "up to 25 voxels away: it has 8 x 9 x 10 voxels of 2 x 2 x 3 mm, origin (50, "),
        (np.eye(4), "voxels of 1 x 1 x 1 mm"),
        (STRETCHED, "up to 0.18 voxels away: it has 8 x 9 x 10 voxels of 2 x 2 x 3.06 mm"),
        (moved(0.3), "up to 0.15 voxels away"),
    ],
    ids=["flipped", "50 mm", "identity", "stretched", "0.15 voxels"],
)
def test_labels_elsewhere_are_refused(tmp_path: Path, affine: np.ndarray, expected: str):
    image = write(tmp_path / "image.nii.gz", scan())
    label = write(tmp_path / "label.nii.gz", np.ones((8, 9, 10), np.uint8), affine)
    message = sentence(image, label)
    assert f"The label {label} is not on the grid of its image {image}" in message
    assert expected in message
    assert "2 x 2 x 3 mm, origin (0, 0, 0), axes RAS; allowed is the image's" in message


@pytest.mark.parametrize(("off", "said"), [(1e-5, False), (0.05, True)])
def test_labels_nearby_take_the_images_geometry(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, off: float, said: bool
):
    image = write(tmp_path / "image.nii.gz", scan(), FLIPPED)
    label = write(
        tmp_path / "label.nii.gz", np.ones((8, 9, 10), np.uint8), FLIPPED + moved(2 * off) - AFFINE
    )
    with caplog.at_level(logging.WARNING):
        loaded = check(image, label)
    np.testing.assert_array_equal(loaded["label"].affine, loaded["image"].affine)
    assert ("label.nii.gz lies 0.05 voxels off its image" in caplog.text) == said
    turned = Orientationd(["image", "label"], "RAS")(loaded)
    np.testing.assert_array_equal(turned["label"].affine, turned["image"].affine)


def test_what_labels_take_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """By the workers of every epoch as well, which have a copy each."""
    image = write(tmp_path / "image.nii.gz", scan())
    label = write(tmp_path / "label.nii.gz", np.ones((8, 9, 10), np.uint8), moved(0.1))
    data = check(image, label)
    checks = CheckInputd("image", 1, 3, "label", 3)
    for _ in range(2):
        data["label"].affine = moved(0.1)
        checks(data)
    assert caplog.text.count("lies 0.05 voxels off") == 2  # one of `check`, one of `checks`
    assert pickle.loads(pickle.dumps(checks)).in_channels == 1


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_grids_that_are_none(tmp_path: Path, bad: float):
    data = check(write(tmp_path / "i.nii.gz", scan()))
    data["image"].affine[1, 1] = bad
    message = refusal(lambda: CheckInputd("image", 1, 3)(data))
    assert f"i.nii.gz has the affine [2 0 0 0; 0 {bad:g} 0 0; 0 0 3 0]" in message


def test_complex_values(tmp_path: Path):
    data = check(write(tmp_path / "i.nii.gz", scan()))
    data["image"] = data["image"] * 1j
    assert "has complex values" in refusal(lambda: CheckInputd("image", 1, 3)(data))


def test_a_jpeg_is_no_label(tmp_path: Path):
    lungs = np.zeros((24, 16), np.uint8)
    lungs[5:15, 4:9] = 1
    for name in ("image.png", "label.jpg"):
        Image.fromarray(lungs).save(tmp_path / name)
    image, label = (str(tmp_path / name) for name in ("image.png", "label.jpg"))
    assert "label.jpg is a JPEG, which does not keep values" in sentence(image, label, dims=2)


def test_ct_has_fat_and_air():
    ct = {"image": torch.linspace(-125, 275, 60).view(1, 3, 4, 5)}
    assert CheckHounsfieldd("image")(ct)["image"] is ct["image"]
    for image, least in ((ct["image"] + 78, "-47"), (ct["image"] + 1024, "899")):
        with pytest.raises(InputError, match=f"no value below {least}, and CT has fat and air"):
            CheckHounsfieldd("image")({"image": image})

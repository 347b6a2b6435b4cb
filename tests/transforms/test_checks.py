from pathlib import Path

import numpy as np
import pytest

from .conftest import check, scan, sentence, write


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
    assert "of size 8 x 9 x 9; allowed is one, of its image's size 8 x 9 x 10" in sentence(
        image, smaller
    )

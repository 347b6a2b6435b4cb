import gzip
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Orientationd
from PIL import Image

from common.errors import InputError
from common.transforms import (
    LoadCheckedImaged,
    LoadPhotographd,
    LoadRadiographd,
    OwnKeysSpacingd,
)

from ..data.series import AFFINE as DICOM_AFFINE
from ..data.series import HU, write_series
from .conftest import check, scan, sentence, write


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_of_decoders_that_are_for_gpus(caplog: pytest.LogCaptureFixture):
    LoadCheckedImaged("image")
    assert caplog.text == ""


def test_image_in_memory_stays(tmp_path: Path):
    image = check(write(tmp_path / "image.nii.gz", scan()))["image"]
    assert LoadCheckedImaged("image")({"image": image})["image"] is image


def test_unreadable_files_are_named(tmp_path: Path):
    missing = str(tmp_path / "missing.nii.gz")
    assert f"The image {missing} cannot be read" in sentence(missing)

    text = tmp_path / "text.nii.gz"
    text.write_text("no image")
    assert f"The image {text} cannot be read" in sentence(str(text))

    whole = Path(write(tmp_path / "whole.nii.gz", scan((40, 40, 40)))).read_bytes()
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    assert f"The image {cut} cannot be read" in sentence(str(cut))

    volume = tmp_path / "cut.mha"
    volume.write_text(
        "NDims = 3\nDimSize = 9 9 9\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    assert re.match(
        rf"The image {volume} cannot be read \(File cannot be read", sentence(str(volume))
    )

    plain = tmp_path / "cut.nii"
    plain.write_bytes(gzip.decompress(whole)[:5000])
    assert f"The image {plain} cannot be read" in sentence(str(plain))


def radiograph(image: str | list[str]) -> np.ndarray:
    """(channels, columns, rows) of files, as the bundles load them."""
    load = Compose([LoadRadiographd("image"), EnsureChannelFirstd("image")])
    return load({"image": image})["image"].numpy()


def png(path: Path, values: np.ndarray, mode: str | None = None) -> str:
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path)
    return str(path)


@pytest.mark.parametrize("mode", [None, "RGB", "RGBA", "LA", "P"])
def test_radiographs_have_one_channel_of_grey(tmp_path: Path, mode: str | None):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    loaded = radiograph(png(tmp_path / "a.png", grey, mode))
    np.testing.assert_array_equal(loaded, grey.T[None])  # the horizontal axis comes first


def test_luminance_of_colours_and_nothing_of_transparency(tmp_path: Path):
    colours = np.array([[[255, 0, 0, 255], [0, 255, 0, 0], [9, 9, 9, 0]]], np.uint8)
    loaded = radiograph(png(tmp_path / "a.png", colours))
    # ITU-R BT.601: 0.299 red, 0.587 green, 0.114 blue
    np.testing.assert_array_equal(loaded, [[[76], [150], [9]]])


def test_sixteen_bits_are_kept(tmp_path: Path):
    grey = np.array([[0, 300, 65535], [1, 4095, 40000]], np.uint16)
    np.testing.assert_array_equal(radiograph(png(tmp_path / "a.png", grey)), grey.T[None])


def test_radiographs_in_other_formats(tmp_path: Path):
    values = scan((8, 9))
    file = write(tmp_path / "image.nii.gz", values)
    np.testing.assert_array_equal(radiograph(file), values[None])


def test_several_files_are_channels(tmp_path: Path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    files = [png(tmp_path / "a.png", values), png(tmp_path / "b.png", values + 1, "RGB")]
    np.testing.assert_array_equal(radiograph(files), np.stack([values.T, values.T + 1]))


def test_truncated_png_is_named(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 80), np.uint8)
    for mode in ("L", "RGB"):
        file = Path(png(tmp_path / f"{mode}.png", noise, mode))
        file.write_bytes(file.read_bytes()[:1500])
        with pytest.raises(RuntimeError) as raised:
            radiograph(str(file))
        assert f"The image {file} cannot be read (" in str(raised.value.__cause__)
        assert "truncated" in str(raised.value.__cause__)


def test_loads_beside_metadata_as_monai_label_asks(tmp_path: Path):
    """MONAI Label sets the loader's image_only to False, and takes transforms one by one."""
    values = scan()
    load = LoadCheckedImaged("image")
    load._loader.image_only = False
    loaded = EnsureChannelFirstd("image")(load({"image": write(tmp_path / "a.nii.gz", values)}))
    assert isinstance(loaded["image"], MetaTensor)
    np.testing.assert_array_equal(loaded["image"][0], values)


def test_what_the_reader_refuses_is_said_of_the_key(tmp_path: Path):
    values = scan()
    first, other = write(tmp_path / "a.nii.gz", values), tmp_path / "b.nii.gz"
    nib.save(nib.Nifti1Image(values, np.diag([-2.0, 2.0, 3.0, 1.0])), other)
    assert re.match(rf"The image {other} has the affine .*{first} \[2 0", sentence([first, other]))
    write(other, values * 1j)
    assert sentence(str(other)).startswith(f"The image {other} has complex values")
    (tmp_path / "a.txt").write_text("text")
    assert "of no format that is known; allowed are" in sentence(str(tmp_path / "a.txt"))


def test_series_are_chosen_by_the_loaders_arguments(tmp_path: Path):
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    uid = write_series(tmp_path / "study/a")
    write_series(tmp_path / "study/b", Modality="MR")
    image = str(tmp_path / "study")
    assert "holds 2 series" in sentence(image)
    for choice in ({"modality": "CT"}, {"series_uid": uid}):
        loaded = LoadCheckedImaged("image", **choice)({"image": image})["image"]
        np.testing.assert_array_equal(loaded, HU)
        np.testing.assert_allclose(loaded.affine, DICOM_AFFINE, atol=1e-9)


def test_sheared_volumes_are_straightened_and_sheared_again(tmp_path: Path):
    """Values that are linear in space are where MONAI's resampling puts them, there and back."""
    affine = np.array([[-2.0, 0, 1.1, 9], [0, 2, 0, -7], [0, 0, 3, 5], [0, 0, 0, 1]])  # 20 degrees
    voxels = np.moveaxis(np.indices((20, 18, 16)), 0, -1)
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, voxels), -1, 0)
    nib.save(nib.Nifti1Image((x + 2 * y + 3 * z).astype(np.float32), affine), tmp_path / "a.nii")
    chain = Compose(
        [
            LoadCheckedImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", "RAS", labels=None),
            OwnKeysSpacingd("image", (1.5, 1.5, 2.0), mode="bilinear", dtype=torch.float64),
        ]
    )
    done = chain({"image": str(tmp_path / "a.nii")})
    straight = done["image"].affine.numpy()
    np.testing.assert_allclose(straight[:3, :3], np.diag([1.5, 1.5, 2.0]), atol=1e-9)
    voxels = np.moveaxis(np.indices(done["image"].shape[1:]), 0, -1)
    there = nib.affines.apply_affine(np.linalg.inv(affine) @ straight, voxels)
    inside = ((there >= 0) & (there <= (19, 17, 15))).all(-1)
    assert inside.mean() > 0.6
    x, y, z = np.moveaxis(nib.affines.apply_affine(straight, voxels), -1, 0)
    expected = (x + 2 * y + 3 * z)[inside]
    np.testing.assert_allclose(done["image"][0].numpy()[inside], expected, atol=1e-3)
    back = chain.inverse(done)["image"]
    np.testing.assert_allclose(back.affine, affine, atol=1e-9)
    original = nib.load(tmp_path / "a.nii").get_fdata()
    middle = (slice(2, -2),) * 3
    np.testing.assert_allclose(back[0].numpy()[middle], original[middle], atol=1e-3)


def test_numbers_of_a_palette_are_the_classes_of_a_label(tmp_path: Path):
    """As an image it is what it looks like: white where the class is 0."""
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    picture.putpalette([255, 255, 255, 0, 0, 0, 0, 0, 9])
    picture.save(tmp_path / "p.png")
    loaded = LoadRadiographd(["image", "label"])(
        dict.fromkeys(("image", "label"), tmp_path / "p.png")
    )
    assert loaded["label"].flatten().tolist() == [0, 1, 2]
    assert loaded["image"].flatten().tolist() == [255, 0, 1]


@pytest.mark.parametrize("size", [(6, 5), (6, 5, 1), (6, 5, 1, 1)])
def test_a_volume_of_one_slice_is_a_radiograph(tmp_path: Path, size: tuple[int, ...]):
    values = np.arange(30, dtype=np.float32).reshape(size)
    file = write(tmp_path / "a.nii.gz", values)
    np.testing.assert_array_equal(radiograph(file), values.reshape(1, 6, 5))
    loaded = LoadRadiographd(["image", "label"])({"image": file, "label": file})
    assert EnsureChannelFirstd("label")(loaded)["label"].shape == (1, 6, 5)


def photograph(image: str, key: str = "image") -> np.ndarray:
    """(channels, columns, rows) of a file, as the bundle for photographs loads it."""
    load = Compose([LoadPhotographd(key), EnsureChannelFirstd(key)])
    return load({key: image})[key].numpy()


COLOURS = np.array([[[255, 0, 7], [0, 255, 9]], [[1, 2, 3], [40, 50, 60]]], np.uint8)


@pytest.mark.parametrize("mode", [None, "RGBA", "P"])
def test_photographs_are_red_green_and_blue(tmp_path: Path, mode: str | None):
    """Also of a palette; what is transparent has its colour all the same."""
    image = Image.fromarray(COLOURS)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.array([[0, 255], [9, 0]], np.uint8)))
    elif mode == "P":
        image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "P")
        image.putpalette(COLOURS.flatten().tolist())
    image.save(tmp_path / "a.png")
    loaded = photograph(str(tmp_path / "a.png"))
    np.testing.assert_array_equal(loaded, COLOURS.transpose(2, 1, 0))


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_photographs_have_three_times_the_same(tmp_path: Path, mode: str):
    grey = np.array([[0, 255, 255], [255, 0, 0]], np.uint8)
    loaded = photograph(png(tmp_path / "a.png", grey, mode))
    np.testing.assert_array_equal(loaded, np.stack([grey.T] * 3))


def test_photographs_as_jpeg(tmp_path: Path):
    Image.new("RGB", (16, 8), (200, 100, 50)).save(tmp_path / "a.JPG", quality=95)
    loaded = photograph(str(tmp_path / "a.JPG"))
    assert loaded.shape == (3, 16, 8)
    assert np.abs(loaded - np.array([200, 100, 50])[:, None, None]).max() <= 3


def test_greys_of_sixteen_bits_are_no_photograph(tmp_path: Path):
    file = png(tmp_path / "a.png", np.array([[0, 300], [65535, 1]], np.uint16))
    with pytest.raises(RuntimeError) as raised:
        photograph(file)
    cause = raised.value.__cause__
    assert isinstance(cause, InputError)
    assert str(cause).startswith(f"The image {file} has grey values of more than 8 bits; allowed")


def test_labels_of_photographs_are_labels(tmp_path: Path):
    mask = np.array([[0, 255, 255]], np.uint8)
    for mode in (None, "RGB"):
        loaded = photograph(png(tmp_path / "a.png", mask, mode), "label")
        np.testing.assert_array_equal(loaded, mask.T[None])

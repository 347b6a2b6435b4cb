import gzip
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, Orientationd, Spacingd
from PIL import Image

from common.errors import InputError
from common.transforms import (
    AdjacentSlicesd,
    CheckInputd,
    LoadCheckedImaged,
    LoadRadiographd,
    MergeMasksd,
    NestedLabelsd,
    NestedRegionsd,
    OwnKeysSpacingd,
    PadToPatchd,
    RelativeSpacingd,
)


def write(path: Path, values: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])), path)
    return str(path)


def scan(shape: tuple[int, ...] = (8, 9, 10)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def check(image: str, label: str | None = None, in_channels: int = 1, dims: int = 3) -> dict:
    keys = ["image"] if label is None else ["image", "label"]
    transform = Compose(
        [
            LoadCheckedImaged(keys),
            EnsureChannelFirstd(keys),
            CheckInputd("image", in_channels, dims, "label" if label else None, num_classes=3),
        ]
    )
    return transform({"image": image} | ({"label": label} if label else {}))


def sentence(*args, **kwargs) -> str:
    with pytest.raises(RuntimeError) as raised:
        check(*args, **kwargs)
    assert isinstance(raised.value.__cause__, InputError)
    return str(raised.value.__cause__)


def test_good_case_passes_unchanged(tmp_path: Path):
    values = scan()
    image = write(tmp_path / "image.nii.gz", values)
    label = write(tmp_path / "label.nii.gz", (values > 0).astype(np.uint8))
    loaded = check(image, label)
    np.testing.assert_array_equal(loaded["image"][0], values)
    np.testing.assert_array_equal(loaded["label"][0], values > 0)


def test_image_in_memory_stays(tmp_path: Path):
    image = check(write(tmp_path / "image.nii.gz", scan()))["image"]
    assert LoadCheckedImaged("image")({"image": image})["image"] is image


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

    plain = tmp_path / "cut.nii"
    plain.write_bytes(gzip.decompress(whole)[:5000])
    assert f"The image {plain} cannot be read" in sentence(str(plain))


def test_small_volumes_are_padded_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    loaded = check(write(tmp_path / "image.nii.gz", scan()))
    pad = PadToPatchd(keys="image", spatial_size=(16, 8, 8))
    with caplog.at_level(logging.WARNING, logger="common.transforms"):
        padded = pad(loaded)["image"]
    assert padded.shape == (1, 16, 9, 10)
    assert "image.nii.gz is 8 x 9 x 10 voxels" in caplog.text
    assert "smaller than the patch 16 x 8 x 8" in caplog.text
    caplog.clear()
    pad({"image": padded})
    assert not caplog.text
    with caplog.at_level(logging.WARNING, logger="common.transforms"):
        air = PadToPatchd("image", (16, 8, 8), value=-1)({"image": loaded["image"]})["image"]
    assert "it is padded with -1." in caplog.text
    assert (air[0, :4] == -1).all()
    assert torch.equal(air[0, 4:12], loaded["image"][0])


def test_adjacent_slices_are_channels():
    volume = MetaTensor(torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5))
    stacked = AdjacentSlicesd("image", slices=3)({"image": volume})["image"]
    assert isinstance(stacked, MetaTensor)
    assert stacked.shape == (6, 3, 4, 5)
    for z in range(5):
        for k, at in enumerate((max(z - 1, 0), z, min(z + 1, 4))):
            assert torch.equal(stacked[2 * k : 2 * k + 2, ..., z], volume[..., at])
    assert AdjacentSlicesd("image", slices=1)({"image": volume})["image"] is volume
    with pytest.raises(InputError, match="slices is 2; allowed are odd numbers from 1"):
        AdjacentSlicesd("image", slices=2)


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


def test_masks_are_merged():
    left, right = np.zeros((2, 4, 5), np.float32)
    left[1, 1], right[2, 3], right[1, 1] = 255, 1, 255
    masks = torch.from_numpy(np.stack([left, right]))
    merged = MergeMasksd("label", 2)({"label": masks})["label"]
    assert merged.shape == (1, 4, 5)
    assert merged.dtype == torch.float32
    assert merged.unique().tolist() == [0, 1]
    assert merged.nonzero().tolist() == [[0, 1, 1], [0, 2, 3]]
    assert MergeMasksd("label", 3)({"label": masks})["label"] is masks


def test_truncated_png_is_named(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 80), np.uint8)
    for mode in ("L", "RGB"):
        file = Path(png(tmp_path / f"{mode}.png", noise, mode))
        file.write_bytes(file.read_bytes()[:1500])
        with pytest.raises(RuntimeError) as raised:
            radiograph(str(file))
        assert f"The image {file} cannot be read (" in str(raised.value.__cause__)
        assert "truncated" in str(raised.value.__cause__)


def volume(shape: tuple[int, ...] = (12, 10, 9), spacing: float = 3.0) -> MetaTensor:
    values = torch.from_numpy(scan(shape))[None]
    return MetaTensor(values, affine=torch.diag(torch.tensor([0.7, 0.9, spacing, 1.0])))


def test_spacing_relative_in_plane():
    data = {"image": volume(), "label": (volume() > 0).float()}
    halve = RelativeSpacingd(["image", "label"], 0.5, 1.0, mode=[3, "nearest"])
    done = halve(data)
    for key in ("image", "label"):
        assert done[key].shape == (1, 6, 5, 25)
        torch.testing.assert_close(done[key].pixdim.tolist(), [1.4, 1.8, 1.0])
        # At the volume's own voxels a spline has the volume's own values.
        shared = done[key][..., ::3].as_tensor()
        torch.testing.assert_close(shared, data[key][:, ::2, ::2].as_tensor(), atol=1e-4, rtol=1e-4)
    assert set(done["label"].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("spacing", [0.45, 6.0])
def test_slices_stay_as_they_are(spacing: float):
    item = {"image": volume(spacing=spacing)}
    keep = Compose([RelativeSpacingd("image", 0.5, None, mode=3)])
    done = keep(item)["image"]
    assert done.shape == (1, 6, 5, 9)
    torch.testing.assert_close(done.pixdim.tolist(), [1.4, 1.8, spacing])
    torch.testing.assert_close(
        done.as_tensor(), item["image"][:, ::2, ::2].as_tensor(), atol=1e-4, rtol=1e-4
    )
    back = Invertd("pred", keep, orig_keys="image")({"image": done, "pred": done.clone()})["pred"]
    assert back.shape == item["image"].shape
    torch.testing.assert_close(back.affine, item["image"].affine)


def test_cubic_between_slices_but_within_the_volumes_values():
    depth = torch.arange(60.0)
    smooth = torch.sin(depth / 3).expand(1, 4, 4, 60)
    resample = RelativeSpacingd("image", 1.0, 0.5, mode=3)
    fine = resample({"image": MetaTensor(smooth)})["image"][0, 0, 0]
    expected = torch.sin(torch.arange(119.0) / 6).clamp(smooth.min(), smooth.max())
    torch.testing.assert_close(fine[20:-20].as_tensor(), expected[20:-20], atol=3e-4, rtol=0)
    step = MetaTensor((depth > 14).float().expand(1, 4, 4, 60))
    fine = resample({"image": step})["image"]
    assert (fine.min(), fine.max()) == (0, 1)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR"])
@pytest.mark.parametrize("shape", [(12, 10, 9), (11, 7, 4)])
def test_relative_spacing_is_inverted_exactly(codes: str, shape: tuple[int, ...]):
    image = Orientationd("image", codes, labels=None)({"image": volume(shape)})["image"]
    image.applied_operations.clear()
    chain = Compose(
        [
            Orientationd("image", "RAS", labels=None),
            RelativeSpacingd("image", in_plane_factor=0.5, slice_spacing=1.0, mode=3),
        ]
    )
    item = chain({"image": image})
    position = torch.stack(
        torch.meshgrid(*(torch.arange(n) for n in item["image"].shape[1:]), indexing="ij")
    )
    # Where each voxel is, in mm: it must be found again on the image's own grid.
    affine = item["image"].affine.float()
    place = torch.einsum("ij,j...->i...", affine[:3, :3], position.float())
    item["pred"] = MetaTensor(place + affine[:3, 3].reshape(3, 1, 1, 1))
    back = Invertd("pred", chain, orig_keys="image", nearest_interp=False)(item)["pred"]
    assert back.shape[1:] == image.shape[1:]
    torch.testing.assert_close(back.affine, image.affine)
    position = torch.stack(
        torch.meshgrid(*(torch.arange(n) for n in image.shape[1:]), indexing="ij")
    )
    affine = image.affine.float()
    expected = torch.einsum("ij,j...->i...", affine[:3, :3], position.float())
    expected += affine[:3, 3].reshape(3, 1, 1, 1)
    # Beyond the last voxel's centre, linear interpolation stays at the border.
    limit = item["pred"].amax((1, 2, 3)).reshape(3, 1, 1, 1)
    torch.testing.assert_close(
        back.as_tensor(), torch.minimum(expected, limit), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["in_plane_factor", "slice_spacing"])
def test_bad_spacings_are_named(name: str):
    with pytest.raises(InputError, match=f"{name} is 0; allowed are positive numbers"):
        RelativeSpacingd("image", **({"in_plane_factor": 0.5, "slice_spacing": 1.0} | {name: 0}))


def test_nested_regions_and_back():
    label = MetaTensor(torch.tensor([[0.0, 1, 2, 0]]), meta={"filename_or_obj": "a"})
    regions = NestedRegionsd("label", num_classes=3)({"label": label})["label"]
    assert regions.meta["filename_or_obj"] == "a"
    assert regions.tolist() == [[0, 1, 1, 0], [0, 0, 1, 0]]
    assert NestedLabelsd("label")({"label": regions})["label"].tolist() == label.tolist()
    # A tumour outside the liver is none, however certain.
    probabilities = torch.tensor([[0.4, 0.6, 0.6, 0.5], [0.9, 0.1, 0.6, 0.6]])
    labels = NestedLabelsd("pred")({"pred": probabilities})["pred"]
    assert labels.tolist() == [[0, 1, 2, 0]]


def test_loads_beside_metadata_as_monai_label_asks(tmp_path: Path):
    """MONAI Label sets the loader's image_only to False, and takes transforms one by one."""
    values = scan()
    load = LoadCheckedImaged("image")
    load._loader.image_only = False
    loaded = EnsureChannelFirstd("image")(load({"image": write(tmp_path / "a.nii.gz", values)}))
    assert isinstance(loaded["image"], MetaTensor)
    np.testing.assert_array_equal(loaded["image"][0], values)


def test_spacing_leaves_other_entries_alone(tmp_path: Path):
    path = write(tmp_path / "a.nii.gz", scan())
    load = Compose([LoadCheckedImaged("image"), EnsureChannelFirstd("image")])
    loaded = load({"image": path, "image_path": path})
    spacing = OwnKeysSpacingd("image", pixdim=(4.0, 4.0, 3.0), mode="bilinear")
    resampled = spacing(loaded)
    assert resampled["image_path"] == path
    expected = Spacingd("image", pixdim=(4.0, 4.0, 3.0), mode="bilinear")(
        {"image": loaded["image"]}
    )
    assert torch.equal(resampled["image"], expected["image"])
    back = spacing.inverse(resampled)["image"]
    assert back.shape == loaded["image"].shape
    assert torch.equal(back.affine, loaded["image"].affine)

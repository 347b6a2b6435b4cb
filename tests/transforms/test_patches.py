import logging
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import CropForegroundd

from common.errors import InputError
from common.transforms import (
    AdjacentSlicesd,
    ForegroundOrAll,
    NonZero,
    PadToPatchd,
    input_size,
)

from .conftest import check, scan, write


def test_small_volumes_are_padded_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    loaded = check(write(tmp_path / "image.nii.gz", scan()))
    pad = PadToPatchd(keys="image", spatial_size=(16, 8, 8))
    with caplog.at_level(logging.WARNING, logger="common.transforms.patches"):
        padded = pad(loaded)["image"]
    assert padded.shape == (1, 16, 9, 10)
    assert "image.nii.gz is 8 x 9 x 10 voxels" in caplog.text
    assert "smaller than the patch 16 x 8 x 8" in caplog.text
    caplog.clear()
    pad({"image": padded})
    assert not caplog.text
    with caplog.at_level(logging.WARNING, logger="common.transforms.patches"):
        air = PadToPatchd("image", (16, 8, 8), value=-1)({"image": loaded["image"]})["image"]
    assert "it is padded with -1." in caplog.text
    assert (air[0, :4] == -1).all()
    assert torch.equal(air[0, 4:12], loaded["image"][0])


def test_sizes_are_rounded_up_with_a_word(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="common.transforms.patches"):
        assert input_size([256, 256, 64], 32, 3) == input_size((256, 256, 64), 1, 3)
        assert not caplog.text
        assert input_size([256, 250, 48], 32, 3) == [256, 256, 64]
    assert "takes multiples of 32 voxels: patch_size is 256 x 256 x 64, not 256 x 250 x 48" in (
        caplog.text
    )


@pytest.mark.parametrize("size", [96, [96, 96], [96, 96, 0], [96, 96, 48.0], [96, 96, True], "96"])
def test_sizes_that_are_none(size: object):
    with pytest.raises(InputError, match=r"image_size is .*; allowed are 3 whole numbers from 1\."):
        input_size(size, 1, 3, name="image_size")


def test_sizes_of_which_nothing_is_left():
    message = "patch_size is 32 x 20 x 16, of which the network would leave one voxel; allowed is "
    with pytest.raises(InputError, match=message + "more than 32 along an axis"):
        input_size([32, 20, 16], 32, 3)
    assert input_size([33, 20, 16], 32, 3) == [64, 32, 32]
    assert input_size([1, 1], 1, 2) == [1, 1]


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


@pytest.mark.parametrize(("inside", "size"), [(slice(2, 5), (1, 3, 3)), (slice(0, 0), (1, 8, 8))])
def test_crop_to_the_foreground_where_there_is_some(inside: slice, size: tuple[int, ...]):
    label = torch.zeros(1, 8, 8)
    label[:, inside, inside] = 2
    crop = CropForegroundd(["label"], "label", select_fn=ForegroundOrAll())
    assert crop({"label": label})["label"].shape == size


def test_crop_to_what_is_not_zero_in_any_channel():
    """Negative values, too."""
    image = torch.zeros(2, 8, 8)
    image[0, 3, 4], image[1, 5, 2] = -1, 2
    crop = CropForegroundd(["image"], "image", select_fn=NonZero(), allow_smaller=True)
    assert torch.equal(crop({"image": MetaTensor(image)})["image"], image[:, 3:6, 2:5])

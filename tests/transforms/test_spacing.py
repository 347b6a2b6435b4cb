import math
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, Orientationd, Spacingd

from common.errors import InputError
from common.transforms import LoadCheckedImaged, OwnKeysSpacingd, RelativeSpacingd

from .conftest import scan, write


def volume(shape: tuple[int, ...] = (12, 10, 9), spacing: float = 3.0) -> MetaTensor:
    values = torch.from_numpy(scan(shape))[None]
    return MetaTensor(values, affine=torch.diag(torch.tensor([0.7, 0.9, spacing, 1.0])))


def low_passed(values: torch.Tensor) -> torch.Tensor:
    """By a Gaussian of 0.5 voxels along h and w, of volumes (1, h, w, depth)."""
    weights = torch.exp(-2 * torch.arange(-2.0, 3) ** 2)
    weights /= weights.sum()
    columns = values[0].permute(2, 0, 1)[:, None]  # (depth, 1, h, w)
    columns = torch.nn.functional.pad(columns, (2, 2, 2, 2), mode="replicate")
    smooth = torch.nn.functional.conv2d(columns, torch.outer(weights, weights)[None, None])
    return smooth[:, 0].permute(1, 2, 0)[None]


def test_spacing_relative_in_plane():
    data = {"image": volume(), "label": (volume() > 0).float()}
    halve = RelativeSpacingd(["image", "label"], 0.5, 1.0, mode=[3, "one-hot"])
    done = halve(data)
    for key in ("image", "label"):
        assert done[key].shape == (1, 6, 5, 25)
        torch.testing.assert_close(done[key].pixdim.tolist(), [1.4, 1.8, 1.0])
        # At the volume's own voxels a spline has the volume's own values.
        shared, own = done[key][..., ::3].as_tensor(), data[key].as_tensor()
        own = low_passed(own) if key == "image" else own
        torch.testing.assert_close(shared, own[:, ::2, ::2], atol=1e-3, rtol=1e-4)
    assert set(done["label"].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("spacing", [0.45, 6.0])
def test_slices_stay_as_they_are(spacing: float):
    item = {"image": volume(spacing=spacing)}
    keep = Compose([RelativeSpacingd("image", 0.5, None, mode=3)])
    done = keep(item)["image"]
    assert done.shape == (1, 6, 5, 9)
    torch.testing.assert_close(done.pixdim.tolist(), [1.4, 1.8, spacing])
    own = low_passed(item["image"].as_tensor())
    torch.testing.assert_close(done.as_tensor(), own[:, ::2, ::2], atol=1e-3, rtol=1e-4)
    back = Invertd("pred", keep, orig_keys="image")({"image": done, "pred": done.clone()})["pred"]
    assert back.shape == item["image"].shape
    torch.testing.assert_close(back.affine, item["image"].affine)


def test_what_fewer_voxels_cannot_tell_apart_is_filtered_out_first():
    """Of stripes a voxel wide every second voxel is 1 and none 0: a structure that is not there."""
    stripes = torch.zeros(1, 16, 16, 30)
    stripes[:, ::2] = 1
    thin = torch.zeros(1, 16, 16, 30)
    thin[..., ::2] = 1
    item = {"image": MetaTensor(stripes), "thin": MetaTensor(thin), "label": MetaTensor(stripes)}
    halve = RelativeSpacingd(["image", "thin", "label"], 0.5, 2.0, mode=[3, "bilinear", "one-hot"])
    done = halve(item)
    remains = torch.tensor(0.5 + 0.5 * (1 - 2 * math.exp(-2)) / (1 + 2 * math.exp(-2)))
    torch.testing.assert_close(
        done["image"][:, 2:-2].as_tensor(), remains.expand(1, 4, 8, 15), atol=2e-3, rtol=0
    )
    torch.testing.assert_close(
        done["thin"][..., 2:-2].as_tensor(), remains.expand(1, 8, 8, 11), atol=2e-3, rtol=0
    )
    assert (done["label"] == 1).all()
    assert (item["image"] == stripes).all()


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

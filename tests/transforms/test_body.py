"""The body in scans of which the truth is known, and in a real CT."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
)
from numpy.typing import NDArray
from scipy import ndimage

from common.data.phantom.ct import Tissue, ct_case
from common.errors import InputError
from common.transforms import BodyCropd, body_mask

from ..conftest import shared

Mask = NDArray[np.bool_]


class Scan(NamedTuple):
    hu: torch.Tensor
    body: Mask
    table: Mask
    arms: Mask


def draw_scan(
    size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    wall: float = 8,
    arms_apart: float = 6,
) -> Scan:
    """A trunk with lungs, whose wall is thin at the sides (mm), bowel gas, and arms on a table."""
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(size, spacing, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    body = (np.abs(x) / 150) ** 2.4 + (np.abs(y) / 105) ** 2.4 < 1
    skin = body & ((np.abs(x) / 147) ** 2.4 + (np.abs(y) / 100) ** 2.4 >= 1)
    lungs = (((np.abs(x) - 80) / (70 - wall)) ** 2 + (y / 70) ** 2 < 1) & (z > 10)
    gas = ((x - 30) ** 2 + (y - 60) ** 2 < 25**2) & (np.abs(z) < 40)
    arms = ((np.abs(x) - 182 - arms_apart) ** 2 + (y + 20) ** 2 < 32**2) & ~body
    depth = x**2 / 1800 - 105 - y  # of the table, which the back touches; 45 mm thick
    foam = (depth > 0) & (depth < 45) & (np.abs(x) < 186)
    shell = foam & ((depth < 3) | (depth > 42) | (np.abs(x) > 180))
    hu = np.full(size, -1000.0)
    hu[foam], hu[shell], hu[arms], hu[body], hu[skin] = -920, -150, 30, 40, -100
    hu[body & lungs], hu[body & gas] = -850, -990
    hu += np.random.default_rng(0).normal(0, 12, size)
    return Scan(torch.from_numpy(hu.astype(np.float32)), body, shell & ~body & ~arms, arms)


def off(mask: Mask, spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    """How far each voxel is from a mask, in mm."""
    return ndimage.distance_transform_edt(~mask, sampling=spacing)


@pytest.mark.parametrize(
    ("size", "spacing"),
    [
        ((170, 140, 60), (2.5, 2.5, 3.0)),
        ((430, 320, 30), (1.0, 1.0, 5.0)),
        ((536, 340, 30), (0.8, 0.9, 2.5)),
        ((96, 80, 40), (4.5, 4.5, 4.5)),
    ],
)
def test_the_body_and_neither_table_nor_arms(size, spacing):
    scan = draw_scan(size, spacing)
    mask = body_mask(scan.hu, spacing)
    assert mask.shape == size
    assert mask.dtype == torch.bool
    mask = mask.numpy()
    assert not (scan.body & ~mask).any()
    assert not (scan.arms & mask).any()
    # Of the shell no more than what the skin touches, 3 mm or two voxels.
    assert off(scan.body, spacing)[scan.table & mask].max() < max(4.1, 2.3 * spacing[0])
    assert (scan.table & mask).sum() < 0.25 * scan.table.sum()
    assert (mask & ~scan.body).sum() < 0.02 * scan.body.sum()


def test_lungs_stay_where_the_chests_wall_is_thin():
    spacing = (0.8, 0.8, 3.0)
    scan = draw_scan((380, 270, 30), spacing, wall=6)
    mask = body_mask(scan.hu, spacing).numpy()
    assert (scan.body & ~mask).sum() < 1e-4 * scan.body.sum()


def test_arms_that_touch_the_trunk_are_body():
    spacing = (2.5, 2.5, 5.0)
    scan = draw_scan((176, 140, 20), spacing, arms_apart=-8)
    mask = body_mask(scan.hu, spacing).numpy()
    assert not ((scan.arms | scan.body) & ~mask).any()
    assert off(scan.body, spacing)[scan.table & mask].max() < 6


@pytest.mark.parametrize("spacing", [(2.5, 2.5, 4.0), (4.0, 4.0, 5.0)])
def test_phantoms_keep_all_but_the_table(spacing: tuple[float, float, float]):
    size = [int(mm / step) for mm, step in zip((400, 300, 220), spacing, strict=True)]
    case = ct_case(np.random.default_rng(1), size, spacing)
    mask = body_mask(torch.from_numpy(case.hu), spacing).numpy()
    patient = case.tissue > Tissue.TABLE
    lost = patient & ~mask
    assert lost.sum() < 0.02 * patient.sum()
    assert case.hu[lost].max() <= -300  # the skin's voxels that are more air than skin
    assert off(~patient, spacing)[lost].max() < 1.5 * spacing[0]
    table = case.tissue == Tissue.TABLE
    assert table.any()
    assert not (table & mask).any()


@pytest.mark.parametrize("name", ["ct", "ct_trunk"])
def test_real_ct(name: str):
    chain = Compose(
        [
            LoadImaged(["image", "label"], allow_missing_keys=True),
            EnsureChannelFirstd(["image", "label"], allow_missing_keys=True),
            Orientationd(["image", "label"], "RAS", labels=None, allow_missing_keys=True),
        ]
    )
    files = {"image": shared(f"data/real_ct/{name}.nii.gz")}
    if name == "ct":
        files["label"] = shared("data/real_ct/liver.nii.gz")
    loaded = chain(files)
    crop = Compose([BodyCropd(["image", "label"], allow_missing_keys=True)])
    cropped = crop(loaded)
    cropped["pred"] = MetaTensor(torch.ones_like(cropped["image"].as_tensor()))
    back = Invertd("pred", crop, orig_keys="image")(cropped)["pred"]
    assert back.shape == loaded["image"].shape
    torch.testing.assert_close(back.affine, loaded["image"].affine, rtol=0, atol=0)
    assert back.sum() == cropped["image"].numel() < back.numel()
    if name == "ct":
        assert cropped["label"].sum() == loaded["label"].sum()
        assert (cropped["image"][cropped["label"] > 0] > -200).all()
    mask = body_mask(loaded["image"][0].as_tensor(), (3, 3, 3)).numpy()
    hu = loaded["image"][0].numpy()
    assert 0.6 < mask.mean() < 0.7
    # The shell is the curve at the bottom of the pictures, dense and apart from all else.
    assert (hu[:, :3] > -200).any()
    assert not mask[:, :3].any()


def volume(hu: torch.Tensor, spacing: tuple[float, float, float]) -> MetaTensor:
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-100.0, 50.0, 7.0])
    return MetaTensor(hu[None], affine=affine, meta={"filename_or_obj": "scan.nii.gz"})


def test_box_and_air_around_the_body():
    spacing = (2.5, 2.5, 4.0)
    scan = draw_scan((176, 140, 20), spacing)
    image = volume(scan.hu, spacing)
    label = volume(torch.from_numpy(scan.body.astype(np.float32)), spacing)
    before = image.clone()
    crop = BodyCropd(["image", "label"], margin=10)
    done = crop({"image": image, "label": label})
    assert torch.equal(image, before)
    assert done["image"].shape == done["label"].shape
    where = np.argwhere(scan.body)
    # 300 x 210 mm and 10 mm on either side, to a voxel
    np.testing.assert_allclose(done["image"].shape[1:], (128, 92, 20), atol=1)
    start = done["image"].affine[:3, 3] - image.affine[:3, 3]
    expected = np.maximum(where.min(0) * spacing - (10, 10, 10), 0)
    np.testing.assert_allclose(start, expected, atol=2.51)
    torch.testing.assert_close(done["image"].affine, done["label"].affine)
    assert done["label"].sum() == scan.body.sum()
    outside = done["image"][done["label"] == 0]
    assert (outside == -1000).float().mean() > 0.95
    inside = done["label"] > 0
    kept = torch.from_numpy(scan.body)[None]
    assert (done["image"][inside] == image[kept]).float().mean() > 0.999


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR"])
def test_inverse_restores_the_grid(codes: str):
    spacing = (2.5, 2.5, 4.0)
    scan = draw_scan((176, 140, 20), spacing)
    image = Orientationd("image", codes, labels=None)({"image": volume(scan.hu, spacing)})["image"]
    image.applied_operations.clear()
    chain = Compose(
        [
            Orientationd("image", "RAS", labels=None),
            BodyCropd("image"),
            ScaleIntensityRanged("image", -200, 250, 0, 1, clip=True),
        ]
    )
    item = chain({"image": image})
    item["pred"] = MetaTensor((item["image"] > 0).float().as_tensor().expand(2, -1, -1, -1))
    back = Invertd("pred", chain, orig_keys="image", nearest_interp=True)(item)["pred"]
    assert back.shape == (2, *image.shape[1:])
    torch.testing.assert_close(back.affine, image.affine, rtol=0, atol=0)
    body = volume(torch.from_numpy(scan.body.astype(np.float32)), spacing)
    body = Orientationd("body", codes, labels=None)({"body": body})["body"].as_tensor() > 0
    dense = image.as_tensor() > -200
    assert torch.equal(back.as_tensor()[:1][body], (dense & body).float()[body])
    assert not back.as_tensor()[:1][~body & ~dense].any()


@pytest.mark.parametrize(
    "hu",
    [
        torch.full((20, 20, 8), -1000.0) + torch.arange(8),
        torch.rand(20, 20, 8, generator=torch.Generator().manual_seed(0)),
        torch.rand(20, 20, 8, generator=torch.Generator().manual_seed(0)) * 900,
        torch.full((1, 1, 1), -1000.0),
    ],
    ids=["air", "normalised", "MR", "one voxel"],
)
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 5.0), (0.01, 0.01, 0.01)])
def test_images_without_a_body_stay(hu, spacing, caplog: pytest.LogCaptureFixture):
    image = volume(hu, spacing)
    with caplog.at_level(logging.WARNING, logger="common.transforms.body"):
        chain = Compose([BodyCropd("image")])
        done = chain({"image": image})
    assert torch.equal(done["image"], image)
    assert "scan.nii.gz, of values" in caplog.text
    assert "is not cropped" in caplog.text
    back = chain.inverse(done)["image"]
    assert back.shape == image.shape


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="margin is -1; allowed are mm from 0"):
        BodyCropd("image", margin=-1)
    with pytest.raises(InputError, match="is 2D; allowed are 3D images"):
        BodyCropd("image")({"image": MetaTensor(torch.zeros(1, 5, 5))})
    with pytest.raises(KeyError):
        BodyCropd(["image", "label"])({"image": volume(torch.zeros(9, 9, 9), (1.0, 1.0, 1.0))})

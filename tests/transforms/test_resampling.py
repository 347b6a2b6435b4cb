"""Cubic images, linear label maps and thick slices apart: as nnunetv2 has them, on its grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, Spacingd
from scipy import ndimage
from torch import Tensor

from common import scratch
from common.ignored import IGNORED
from common.transforms import OwnKeysSpacingd, SplineResized, resampling
from common.transforms.resampling import (
    Axis,
    resample_image,
    resample_labels,
    same_extent,
    slices_apart,
)
from common.zoo.contract import config, ids

from ..conftest import REPOSITORY

# shape, wanted shape, spacing, wanted spacing
GRIDS = {
    "finer": ((13, 8, 11), (20, 15, 16), (1, 1, 1), (0.7, 0.6, 0.7)),
    "coarser": ((15, 16, 9), (7, 11, 8), (1, 1, 1), (2.1, 1.4, 1.1)),
    "thick slices": ((9, 15, 16), (14, 21, 9), (5, 1, 1), (3, 0.8, 1.8)),
    "to thick slices": ((12, 14, 17), (12, 9, 5), (1, 1, 1), (1, 1.5, 3.4)),
    "thick slices kept": ((12, 14, 7), (17, 9, 7), (1, 1, 4), (0.7, 1.5, 4)),
    "two long axes": ((6, 7, 20), (11, 9, 13), (4, 4, 1), (2.2, 3.1, 1.5)),
}

RESAMPLE = [f"common.transforms.{name}" for name in ("OwnKeysSpacingd", "SplineResized")]
RELATIVE = "common.transforms.RelativeSpacingd"
ALL = [path for path in sorted((REPOSITORY / "bundles").iterdir()) if path.is_dir()]
# The others' spacing is relative to a scan's own.
BUNDLES = [path for path in ALL if "in_plane_factor" not in config(path, "train")]


def numbers(shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(40, 100, (2, *shape))).float()


def regions(shape: Sequence[int], values: Sequence[int] = (0, 1, 2, 5)) -> Tensor:
    """A label map (1, ...) of smooth regions."""
    noise = np.random.default_rng(1).normal(size=(len(values), *shape))
    smooth = ndimage.gaussian_filter(noise, (0, *[1.3] * len(shape)))
    return torch.tensor(values)[torch.from_numpy(smooth.argmax(0))][None].float()


@pytest.mark.parametrize("slab", [2**26, 2**9])
@pytest.mark.parametrize("grid", GRIDS)
def test_as_nnunets(grid: str, slab: int, monkeypatch: pytest.MonkeyPatch):
    module = pytest.importorskip(
        "nnunetv2.preprocessing.resampling.default_resampling", reason="needs the extra: plan"
    )
    theirs = module.resample_data_or_seg_to_shape
    monkeypatch.setattr(scratch, "_SLAB", slab)
    shape, wanted, spacing, new_spacing = GRIDS[grid]
    axes = [same_extent(n, m) for n, m in zip(shape, wanted, strict=True)]
    apart = slices_apart(spacing, new_spacing)
    image, label = numbers(shape), regions(shape, (IGNORED, 0, 1, 5))
    how = {"order_z": 0, "force_separate_z": None}
    expected = theirs(image.numpy(), wanted, spacing, new_spacing, order=3, **how)
    found = resample_image(image, axes, apart)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)  # of hundreds, in float32
    expected = theirs(label.numpy(), wanted, spacing, new_spacing, is_seg=True, order=1, **how)
    np.testing.assert_array_equal(resample_labels(label, axes, apart), expected)
    # An image in another order in memory, as nibabel's are, is cut into other slabs.
    turned = image.movedim(-1, 1).contiguous().movedim(1, -1)
    assert not turned.is_contiguous()
    torch.testing.assert_close(resample_image(turned, axes, apart), found, rtol=0, atol=2e-4)


def test_pictures_as_nnunets():
    module = pytest.importorskip(
        "nnunetv2.preprocessing.resampling.default_resampling", reason="needs the extra: plan"
    )
    image, label = numbers((21, 34)), regions((21, 34), (0, 1, 2))
    resized = SplineResized(["image", "label"], (30, 17), mode=[3, "one-hot"])
    found = resized({"image": MetaTensor(image), "label": MetaTensor(label)})
    # Of half the pixels along an axis, what is finer than these goes first.
    smooth = ndimage.gaussian_filter(image, (0, 0, 0.5), mode="nearest")
    for key, volume, how in (
        ("image", smooth, {"order": 3}),
        ("label", label.numpy(), {"order": 1, "is_seg": True}),
    ):
        expected = module.resample_data_or_seg_to_shape(
            volume[:, None], (1, 30, 17), (999, 1, 1), (999, 0.7, 2), **how
        )
        np.testing.assert_allclose(found[key], expected[:, 0], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("spacing", "wanted", "axis"),
    [
        ((1, 1, 3), (1, 1, 3), None),
        ((1, 1, 3.1), (1, 1, 1), 2),
        ((1, 1, 1), (4, 1, 1), 0),
        ((1, 4, 4), (1, 1, 1), None),
        ((1, 4, 4), (1, 1, 9), None),
    ],
)
def test_which_slices_are_apart(spacing: Sequence[float], wanted: Sequence[float], axis: int):
    """By the image's own spacing first, and by what is wanted only where that is even."""
    assert slices_apart(spacing, wanted) == axis


def test_values_stay_within_the_images():
    step = torch.zeros(1, 12, 12, 12)
    step[:, 6:] = 1000
    axes = [same_extent(12, 20)] * 3
    fine = resample_image(step, axes)
    assert (fine.min(), fine.max()) == (0, 1000)
    step[..., 6:] = 5  # of slices apart each within its own
    fine = resample_image(step, axes, apart=2)
    assert fine[..., 12:].unique().tolist() == [5]
    assert fine[..., :8].max() == 1000


def test_between_two_classes_the_nearest_counts():
    """Half a voxel off, on MONAI's grid, both have one half; the smaller number has no right."""
    label = torch.tensor([[3.0, 3, 1, 1]])
    (found,) = resample_labels(label, [Axis(7, 0.5, 0.0)])
    nearest = [round(i / 2 + 1e-9) for i in range(7)]
    assert found.tolist() == [label[0, i].item() for i in nearest]


def test_a_third_class_is_not_made_between_two():
    label = torch.zeros(1, 8, 8, 8)
    label[:, 4:] = 2
    found = resample_labels(label, [same_extent(8, 13)] * 3)
    assert found.unique().tolist() == [0, 2]
    assert found.dtype == label.dtype


def test_memory_is_that_of_a_slab(monkeypatch: pytest.MonkeyPatch):
    """Besides what goes in and comes out there is only what a slab of it takes."""
    monkeypatch.setattr(scratch, "_SLAB", 2**14)
    seen = []
    weighed = resampling._weighed

    def watched(volume: Tensor, weights: list) -> Tensor:
        result = weighed(volume, weights)
        seen.append(max(result.numel() * 4, 0))
        return result

    monkeypatch.setattr(resampling, "_weighed", watched)
    axes = [same_extent(60, 70), same_extent(50, 40), same_extent(40, 40)]
    resample_image(torch.randn(1, 60, 50, 40), axes)
    resample_labels(regions((60, 50, 40)), axes)
    assert len(seen) > 20
    assert max(seen) <= 2**14


@pytest.mark.parametrize("bundle", ALL, ids=lambda path: path.name)
def test_bundles_normalise_before_they_resample(bundle: Path):
    """A spline overshoots into what is 0 outside of a head, and would make foreground of it."""
    for file in ("train", "inference", "evaluate"):
        chains = [x for x in ids(config(bundle, file)).values() if isinstance(x, list)]
        for chain in chains:
            names = [str(x.get("_target_") if isinstance(x, dict) else x) for x in chain]
            for at in [i for i, name in enumerate(names) if name in (*RESAMPLE, RELATIVE)]:
                assert "@intensity" in names[:at]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_bundles_resample_so(bundle: Path):
    """In every chain: those of validation and evaluation take labels as they are, or training's."""
    found = {}
    for file in ("train", "inference", "evaluate"):
        values = ids(config(bundle, file)).values()
        steps = [x for x in values if isinstance(x, dict) and str(x.get("_target_")) in RESAMPLE]
        found[file] = [step["mode"] for step in steps]
    assert found == {"train": [[3, "one-hot"]], "inference": [3], "evaluate": [3]}


# MONAI's grid in the place of nnU-Net's.
AFFINE = np.diag([0.8, 1.1, 1.6, 1])


def waves(affine: np.ndarray, shape: Sequence[int]) -> Tensor:
    """A smooth function of where a voxel is, in mm, largest and smallest at the ends."""
    x, y, z = (
        affine[i, i] * np.arange(n) + affine[i, 3] for i, n in zip(range(3), shape, strict=True)
    )
    values = (np.sin(x / 3) + x / 2)[:, None, None] + np.cos(y / 4)[:, None] + np.sin(z / 5)
    return torch.from_numpy(values)[None].float()


def test_monais_grid_has_the_spacing_and_nnunets_the_extent():
    """Both have the function's own values where their voxels are; they are not at the same places.

    MONAI's voxels have the spacing asked for, from the image's first one on; nnU-Net's grid is the
    image's box, in which the spacing is what is left.
    """
    shape = (31, 26, 22)
    image = MetaTensor(waves(AFFINE, shape), affine=AFFINE)
    done = OwnKeysSpacingd("image", (1.0, 0.9, 1.3), mode=3)({"image": image})["image"]
    grid = done.affine.numpy()
    assert done.pixdim.tolist() == pytest.approx([1.0, 0.9, 1.3])
    assert grid[:3, 3].tolist() == [0, 0, 0]
    expected = waves(grid, done.shape[1:])
    inside = (0, slice(4, -4), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(done.as_tensor()[inside], expected[inside], rtol=0, atol=3e-3)
    ends = grid.diagonal()[:3] * (np.array(done.shape[1:]) - 1)
    assert (np.abs(ends - AFFINE.diagonal()[:3] * (np.array(shape) - 1)) <= [0.5, 0.45, 0.65]).all()

    wanted = [
        round(n * a / b) for n, a, b in zip(shape, (0.8, 1.1, 1.6), (1, 0.9, 1.3), strict=True)
    ]
    assert wanted == [25, 32, 27]
    theirs = np.diag([31 / 25 * 0.8, 26 / 32 * 1.1, 22 / 27 * 1.6, 1])
    theirs[:3, 3] = (theirs.diagonal()[:3] - AFFINE.diagonal()[:3]) / 2
    found = resample_image(
        image.as_tensor(), [same_extent(n, m) for n, m in zip(shape, wanted, strict=True)]
    )
    torch.testing.assert_close(found[inside], waves(theirs, wanted)[inside], rtol=0, atol=3e-3)


def test_grids_that_are_sheared_get_monais_spline():
    affine = AFFINE.copy()
    affine[0, 1] = 0.4
    image, label = numbers((12, 11, 10)), regions((12, 11, 10))
    item = {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)}
    how = {"pixdim": (1.0, 0.9, 1.3), "dtype": torch.float32}
    found = OwnKeysSpacingd(["image", "label"], mode=[3, "one-hot"], **how)(item)
    expected = Spacingd(["image", "label"], mode=[3, "nearest"], **how)(item)
    for key in item:
        assert torch.equal(found[key].as_tensor(), expected[key].as_tensor())
    assert set(found["label"].unique().tolist()) <= {0, 1, 2, 5}


def test_what_is_on_the_grid_stays_as_it_is():
    image = MetaTensor(numbers((7, 6, 5)), affine=AFFINE)
    item = {"image": image, "label": MetaTensor(regions((7, 6, 5)), affine=AFFINE)}
    spacing = OwnKeysSpacingd([*item], (0.8, 1.1, 1.6), mode=[3, "one-hot"])
    for key, done in spacing(item).items():
        assert torch.equal(done.as_tensor(), item[key].as_tensor())


@pytest.mark.parametrize("shape", [(20, 15), (20, 15, 6)])
def test_resized_and_back(shape: tuple[int, ...]):
    size = (26, 12, -1)[: len(shape)]
    image = MetaTensor(ndimage.gaussian_filter(numbers(shape).numpy(), (0, *[2] * len(shape))))
    resized = SplineResized(["image", "label"], size, mode=[3, "one-hot"])
    label = MetaTensor(regions(shape))
    done = resized({"image": image, "label": label})
    assert done["image"].shape[1:3] == done["label"].shape[1:3] == (26, 12)
    pred = done["image"].clone()
    back = Invertd("pred", resized, orig_keys="image", nearest_interp=False)(
        {"image": done["image"], "label": done["label"], "pred": pred}
    )["pred"]
    assert back.shape == image.shape
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-6)
    assert (back - image).abs().mean() < 0.1 * image.std()

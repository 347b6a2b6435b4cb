"""Label maps on the image's grid, slab by slab: as MONAI's chain has them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    Flipd,
    Invertd,
    Orientationd,
    Resize,
    Resized,
    Spacingd,
)
from torch import Tensor
from torch.nn import functional as F

from common import scratch
from common.transforms import InvertedLabelsd, OwnKeysSpacingd

from ..conftest import REPOSITORY

VOLUMES = sorted(path for path in (REPOSITORY / "bundles").glob("liver*") if path.is_dir())
VOLUMES.append(REPOSITORY / "bundles/brain_tumor_mr_segmamba_segmentation")
SMALL = {"device": "cpu", "spacing": [2.3, 2.3, 2.9], "patch_size": [32, 32, 16]}
TURN = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
AFFINES = {
    "flipped": np.diag([-2.0, -2, 3, 1]),
    "transposed": np.array([[0, 2.0, 0, 5], [0, 0, -3, 1], [1.7, 0, 0, -9], [0, 0, 0, 1]]),
    "oblique": TURN @ np.diag([2, -1.7, 3, 1]),
}


def phantom(size: tuple[int, ...], affine: np.ndarray) -> MetaTensor:
    """A body in air, which is cropped to."""
    values = torch.full((1, *size), -1000.0)
    values[(0, *(slice(n // 5, -n // 4) for n in size))] = 60
    values += torch.randn(values.shape) * 10
    meta = {"filename_or_obj": "a.nii.gz", "original_channel_dim": 0}
    return MetaTensor(values, affine=affine, meta=meta)


def some_logits(classes: int, size: tuple[int, ...], axis: int) -> Tensor:
    """Smooth ones, whose slabs lie along an axis."""
    coarse = torch.randn(1, classes, *(max(n // 4, 2) for n in size))
    logits = F.interpolate(coarse, size=size, mode="trilinear")[0] * 3
    return logits.movedim(axis + 1, 0).contiguous().movedim(0, axis + 1)


def chain(bundle: Path) -> tuple[Compose, InvertedLabelsd]:
    parser = ConfigParser()
    parser.read_config(bundle / "configs/inference.json")
    small = {key: value for key, value in SMALL.items() if key in parser.config}
    if "patch_size" in small:
        axes = len(parser.get_parsed_content("patch_size"))
        small["patch_size"] = SMALL["patch_size"][:axes]
    parser.update(small | {"save_probabilities": True})
    before = parser.get_parsed_content("preprocessing")
    # Loading and checks are of files.
    before.transforms = before.transforms[3:]
    steps = parser.get_parsed_content("postprocessing").transforms
    return before, next(step for step in steps if isinstance(step, InvertedLabelsd))


@pytest.mark.parametrize("how", AFFINES)
@pytest.mark.parametrize("bundle", VOLUMES, ids=lambda path: path.name)
def test_as_monais_chain(bundle: Path, how: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scratch, "_SLAB", 2**14)
    axis = [*AFFINES].index(how)
    torch.manual_seed(0)
    before, inverted = chain(bundle)
    image = before({"image": phantom((31, 27, 17), AFFINES[how])})["image"]
    kept = image.affine.clone()
    logits = some_logits(3, tuple(image.shape[1:]), axis)
    linear = Invertd("pred", before, orig_keys="image", nearest_interp=False)
    item = linear(inverted.probabilities({"pred": logits.clone()}) | {"image": image})
    probabilities = item["pred"]
    expected = inverted.labels({"pred": probabilities})["pred"]
    close = probabilities.topk(2, 0).values.diff(dim=0).abs() < 1e-4  # ties
    close |= ((probabilities - 0.5).abs() < 1e-4).any(0)
    close &= probabilities.amax(0) > 0  # outside of what was cropped there is no doubt

    for in_memory in (0, 2**28):
        inverted.in_memory = in_memory
        done = inverted({"pred": logits, "image": image})
        assert done["pred"].shape == expected.shape
        assert done["pred"].dtype == torch.uint8
        assert not ((done["pred"] != expected) & ~close).any()
        levels = done["probabilities"]
        assert (levels - probabilities * 255).abs().max() < 0.51
        for found in (done["pred"], levels):
            np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
        assert torch.equal(image.affine, kept)
    assert close.float().mean() < 0.1
    assert len(expected.unique()) > 1


def test_slabs_are_what_is_tested(monkeypatch: pytest.MonkeyPatch):
    """The whole is never inverted where it is too large; after what is unknown it always is."""
    before, inverted = chain(VOLUMES[0])
    inverted.in_memory = 0
    monkeypatch.setattr(inverted, "linear", None)
    item = before({"image": phantom((20, 22, 18), AFFINES["flipped"])})
    logits = some_logits(3, tuple(item["image"].shape[1:]), 0)
    inverted({"pred": logits, "image": item["image"]})
    item = Flipd("image", 0)(item)
    with pytest.raises(TypeError):
        inverted({"pred": logits, "image": item["image"]})


@pytest.mark.parametrize("in_memory", [0, 2**28])
@pytest.mark.parametrize("size", [(24, 40), (24, 32), (30, 40)])
def test_radiographs_with_a_side_of_the_networks_size(size: tuple[int, int], in_memory: int):
    """Whose affine, as PNGs', is of three axes."""
    before = Compose([Resized("image", (24, 40), mode="bilinear")])
    picture = MetaTensor(torch.randn(1, *size), affine=torch.eye(4))
    image, logits = before({"image": picture})["image"], torch.randn(2, 24, 40)
    softmax, argmax = Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)
    inverted = InvertedLabelsd("pred", before, softmax, argmax, in_memory=in_memory)
    found = inverted({"pred": MetaTensor(logits), "image": image})["pred"]
    expected = Resize(size, mode="bilinear")(logits.softmax(0)).argmax(0, keepdim=True)
    assert torch.equal(found.as_tensor(), expected.to(torch.uint8))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("how", AFFINES)
def test_large_volumes_are_resampled_as_small_ones(
    how: str, mode: str, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    volume = phantom((33, 29, 23), AFFINES[how])
    turned = Orientationd("image", "RAS", labels=None)({"image": volume})
    options: dict[str, Any] = {"pixdim": (1.3, 2.6, 2.9), "mode": mode, "dtype": torch.float32}
    theirs, ours = Spacingd("image", **options), OwnKeysSpacingd("image", **options)
    expected = theirs(turned)["image"]
    monkeypatch.setattr(scratch, "IN_MEMORY", 0)
    monkeypatch.setattr(scratch, "_SLAB", 2**14)
    found = ours(turned)["image"]
    np.testing.assert_allclose(found.affine, expected.affine)
    assert found.shape == expected.shape
    allowed = 0.1 if mode == "bilinear" else 0  # of 1000 HU; labels stay as they are
    torch.testing.assert_close(found, expected, rtol=0, atol=allowed)
    back = ours.inverse({"image": found})["image"]
    torch.testing.assert_close(back, theirs.inverse({"image": expected})["image"], rtol=0, atol=1)
    np.testing.assert_allclose(back.affine, turned["image"].affine)

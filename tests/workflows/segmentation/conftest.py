"""Small bundles with weights that nobody trained, and scans for them."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import generate_uid

from common.checkpoints import save_checkpoint
from common.networks import LightMUNet

from ...conftest import REPOSITORY
from ...data.test_ircadb import write_slice

SIZE = (18, 16, 14)
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])  # LPS, as from DICOM
SMALL = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}


def make_bundle(
    folder: Path, of: str, network: dict[str, Any], size: Sequence[int], **settings: Any
) -> Path:
    """A copy of a bundle's configs with weights and their settings, as a training leaves them.

    The logits of noise have the median 0 in each class, so that each is found somewhere.
    """
    shutil.copytree(REPOSITORY / "bundles" / of / "configs", folder / "configs")
    torch.manual_seed(0)
    net = LightMUNet(**network).eval()
    with torch.no_grad():
        logits = net(torch.randn(1, 1, *size))
        bias = net.head.conv.pointwise.bias
        assert bias is not None
        bias -= logits.flatten(2).median(-1).values[0]
    weights = OrderedDict(net.state_dict())
    told = {"_target_": "common.networks.LightMUNet", **network}
    weights.settings = {**settings, "in_channels": 1, "network_def": told}  # type: ignore[attr-defined]
    (folder / "models").mkdir()
    save_checkpoint(weights, folder / "models/model.pt")
    return folder


@pytest.fixture(scope="session")
def ct_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = "liver_ct_lightm_unet_segmentation"
    return make_bundle(
        tmp_path_factory.mktemp("ct") / name,
        name,
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, **SMALL},
        (16, 16, 8),
        modality="CT",
        axcodes="RAS",
        num_classes=3,
        spacing=[2, 2, 3],
        patch_size=[16, 16, 8],
        label_names=["background", "liver", "liver tumour"],
    )


@pytest.fixture(scope="session")
def cxr_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = "lung_cxr_lightm_unet_segmentation"
    return make_bundle(
        tmp_path_factory.mktemp("cxr") / name,
        name,
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, **SMALL},
        (32, 32),
        num_classes=2,
        axes=[0, 1, 2],
        image_size=[32, 32],
    )


def scan(seed: int = 0) -> NDArray[np.int16]:
    """Noise about soft tissue, with air in a corner."""
    values = np.random.default_rng(seed).normal(60, 80, SIZE)
    values[:2, :2, :2] = -1000
    return values.astype(np.int16)


def save_scan(path: Path, seed: int = 0, values: NDArray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(scan(seed) if values is None else values, AFFINE), path)
    return path


def save_series(folder: Path, uid: str | None = None, seed: int = 0, **tags: object) -> str:
    """The same scan as slices, with all that refers to them by; its SeriesInstanceUID."""
    uid = uid or generate_uid()
    ids = {tag: generate_uid() for tag in ("StudyInstanceUID", "FrameOfReferenceUID")}
    for n, section in enumerate(np.moveaxis(scan(seed), 2, 0)):
        about = {
            "Modality": "CT",
            "ImagePositionPatient": [0.0, 0.0, float(AFFINE[2, 2] * n)],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [float(-AFFINE[1, 1]), float(-AFFINE[0, 0])],
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
        }
        stored = (section.T + 1024).astype(np.uint16)
        # Named in another order than they lie.
        write_slice(
            folder / f"{(5 * n) % 14:02d}_{uid[-6:]}.dcm", stored, n, uid, **(about | ids | tags)
        )
    return uid


def save_film(path: Path) -> Path:
    grey = np.random.default_rng(0).integers(0, 255, (40, 48)).astype(np.uint8)
    Image.fromarray(grey).save(path)
    return path
